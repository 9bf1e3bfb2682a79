"""The commands that join a running graph, or bring one up."""
