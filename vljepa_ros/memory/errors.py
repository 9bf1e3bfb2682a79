"""The error of the memory: one sentence that a user can act on."""

from __future__ import annotations

from ..runtime.errors import VLJepaError


class StoreError(VLJepaError):
    """A moment store cannot be opened, read or written, or was given what it does not take."""
