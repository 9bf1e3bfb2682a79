"""The memory node and its parts."""
