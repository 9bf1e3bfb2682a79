"""The executable `memory_node`. Its node, memory/node.py, is imported once signals are safe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vljepa_ros.ros.process import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; returns the exit code. `args`: the command line; None: sys.argv."""
    return run("vljepa_ros.nodes.memory.node", "MemoryNode", args)


if __name__ == "__main__":
    sys.exit(main())
