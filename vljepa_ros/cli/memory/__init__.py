"""The commands that write, search and look into a moment store."""
