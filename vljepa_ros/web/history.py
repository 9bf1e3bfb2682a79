"""What a page that opens late is told: the last minutes of every stream.

Invariant: it holds at most `STREAMS` streams, of each at most `SECONDS` of stream time and
`STEPS` steps, however long it runs and whatever it is given.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

SECONDS = 600.0
STEPS = 6000  # of one stream: 10 Hz for `SECONDS`
STREAMS = 32  # cameras times standing questions

Event = dict[str, Any]


class History:
    """Steps, changes and words of each camera and standing question, as events.

    Events are those that the pages get; see web_server.py. One thread uses it.
    """

    def __init__(self) -> None:
        self._streams: OrderedDict[tuple[str, str], _Stream] = OrderedDict()

    def add(self, event: Event) -> None:
        """Take in a step, a change or words."""
        key = (event["camera"], event["query"])
        stream = self._streams.setdefault(key, _Stream())
        self._streams.move_to_end(key)
        while len(self._streams) > STREAMS:  # the one heard of longest ago
            self._streams.popitem(last=False)
        stream.add(event)

    def events(self) -> list[Event]:
        """One event for each stream that holds all of it."""
        return [
            {"type": "history", "camera": camera, "query": query, **stream.content()}
            for (camera, query), stream in self._streams.items()
        ]


class _Stream:
    def __init__(self) -> None:
        self._kept: dict[str, deque[Event]] = {
            "step": deque(maxlen=STEPS), "change": deque(maxlen=STEPS), "words": deque(maxlen=STEPS)
        }  # fmt: skip

    def add(self, event: Event) -> None:
        kept, steps, stamp = self._kept[event["type"]], self._kept["step"], event["stamp"]
        if event["type"] == "step" and steps and stamp < steps[-1]["stamp"]:  # time jumped back
            for events in self._kept.values():
                while events and events[-1]["stamp"] > stamp:
                    events.pop()
        kept.append(event)
        newest = steps[-1]["stamp"] if steps else stamp
        for events in self._kept.values():
            while events and events[0]["stamp"] < newest - SECONDS:
                events.popleft()

    def content(self) -> Event:
        fields = ("stamp", "score", "segment", "reused", "familiarity")
        steps = [[event[field] for field in fields] for event in self._kept["step"]]
        return {
            "steps": steps,
            "changes": list(self._kept["change"]),
            "words": list(self._kept["words"]),
        }
