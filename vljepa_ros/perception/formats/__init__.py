"""Compressed picture data: whether they are whole, and the pictures that they hold."""
