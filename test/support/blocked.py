"""Code in a fresh process in which some packages do not exist."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

BLOCKER = """
import sys

sys.path[:0] = {path!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without(
    blocked: Sequence[str], code: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run Python code where the packages in `blocked` cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKER.format(path=sys.path, blocked=tuple(blocked)) + code],
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
