"""What a memory node has open: its bundle, its store, and the cameras that it knows.

Invariant: `store` is None where the node is not configured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.memory.store import MomentStore


@dataclass
class StoreState:
    """Shared by the node, which opens and closes it, and by what recalls from it."""

    bundle: Bundle | None = None
    store: MomentStore | None = None
    cameras: set[str] = field(default_factory=set)  # in the store, or heard
