"""The errors of the runtime: each message is one sentence that a user can act on."""

from __future__ import annotations


class VLJepaError(Exception):
    """What was wrong, with which file, topic or parameter, and what to do about it."""


class BundleError(VLJepaError):
    """A model bundle is missing, altered, or does not say what its schema asks for."""


class EngineError(VLJepaError):
    """An engine cannot be opened on this machine, or was given inputs that it does not take."""
