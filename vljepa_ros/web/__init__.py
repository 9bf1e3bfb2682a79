"""The page: a node that listens and asks, a server, and the files in static/."""
