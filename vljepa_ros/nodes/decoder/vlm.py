"""The decoder node's side of a VLM: which changes it is shown, and what comes of them.

Invariant: a change that is taken is handed back once, with the VLM's words or to be said by others,
unless it is cancelled; where pictures go is in the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from vljepa_ros.msg import SemanticChange
from vljepa_ros.ros.diagnostics import WARN, Status
from vljepa_ros.ros.lifecycle import ModelNode
from vljepa_ros.words.asker import Answer, Asker, SupersededError
from vljepa_ros.words.vlm import Endpoint

from .parameters import endpoint

THROTTLE = 30.0  # seconds between two warnings
COUNTS = ("asked", "answered", "failed", "superseded", "without pictures")
WITHOUT = (
    "Changes come without pictures for the VLM; set the perception node's parameter change_frames "
    "to 1..4."
)


class VlmWords:
    """Asks a VLM about changes while the parameter `words` is vlm.

    `say` gets its words, `instead` what others are to say; both in its thread.
    """

    def __init__(
        self,
        node: ModelNode,
        say: Callable[[Answer[SemanticChange], str], None],
        instead: Callable[[SemanticChange], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.endpoint: Endpoint | None = None  # None: it is not asked
        self._frames = 1
        self._node = node
        self._say = say
        self._instead = instead
        self._asker: Asker[SemanticChange] | None = None
        self._problem = ""  # the last one that the diagnostics have not said

    @property
    def open(self) -> int:
        """Changes that it has been shown and not come to words."""
        asker = self._asker
        return asker.open if asker is not None else 0

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take over settings, and say where pictures go, if that is elsewhere now."""
        before, now = self.endpoint, None
        if settings["words"] == "vlm":
            now = endpoint(settings)
        self.endpoint, self._frames = now, settings["frames"]
        address = now.address if now is not None else ""
        if address != (before.address if before is not None else ""):
            self._node.get_logger().warning(
                f"Pictures of changes go to {address}." if address else "Pictures go nowhere now."
            )

    def ask(self, change: SemanticChange) -> bool:
        """Show it the pictures of a change; whether it is asked, and there are any."""
        asked = self.endpoint
        if asked is None:
            return False
        pictures = [bytes(one.data) for one in change.key_frames[-self._frames :]]
        if not pictures:
            if not self.counts["without pictures"]:
                self._node.get_logger().warning(WITHOUT)
            self.counts["without pictures"] += 1
            self._problem = WITHOUT
            return False
        if self._asker is None:
            self._asker = Asker(self._on_answer)
        self.counts["asked"] += 1
        self._asker.put(change.camera, asked, pictures, change)
        return True

    def cancel(self) -> int:
        """Forget what is under way; how many changes that were."""
        return self._asker.cancel() if self._asker is not None else 0

    def close(self) -> None:
        """Ask nothing more."""
        self.endpoint = None
        asker, self._asker = self._asker, None
        if asker is not None:
            asker.close()

    def statuses(self) -> list[Status]:
        """What came of the questions; nothing where none was asked."""
        if self.endpoint is None and not self.counts:
            return []
        status = Status("vlm", values={name: self.counts[name] for name in COUNTS})
        if self._problem:
            status.level, status.message, self._problem = WARN, self._problem, ""
        return [status]

    def _on_answer(self, answer: Answer[SemanticChange]) -> None:
        outcome, counts = answer.outcome, self.counts
        if isinstance(outcome, str):
            counts["answered"] += 1
            self._say(answer, outcome)
            return
        if isinstance(outcome, SupersededError):
            counts["superseded"] += 1
        else:
            counts["failed"] += 1
            self._problem = str(outcome)
            self._warn(
                f"{outcome} Others put the change into words; {counts['failed']} of "
                f"{counts['asked']} questions have failed."
            )
        self._instead(answer.about)

    def _warn(self, sentence: str) -> None:
        """Warn, not too often."""
        node = self._node
        node.get_logger().warning(
            sentence, throttle_duration_sec=THROTTLE, throttle_time_source_type=node.steady
        )
