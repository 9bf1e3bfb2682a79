"""Pseudo-terminals for tests of what people see."""

import pty

import pytest


def open_terminal() -> tuple[int, int]:
    """File descriptors of a new terminal, ours and the command's; skips where there are none."""
    try:
        return pty.openpty()
    except OSError as error:  # a container without /dev/pts
        pytest.skip(f"this machine gives no terminal: {error}")
