"""Recordings into moments, for `vljepa index`."""
