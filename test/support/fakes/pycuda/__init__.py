"""A stand-in for PyCUDA; see ../README.md."""

VERSION = (2026, 1)
