"""For language models: a server of the Model Context Protocol that joins the graph as a client."""
