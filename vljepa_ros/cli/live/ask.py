"""`vljepa ask`, `vljepa classify` and `vljepa watch`: a running graph, asked from a shell.

Invariant: the answer goes to stdout; that there is none is one sentence on stderr and exit code 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Optional

import typer
from rich.live import Live as Screen
from rich.text import Text

from vljepa_ros.console import console, notice, print_json
from vljepa_ros.stamps import clock, to_ns

from ..records import Match, record, scored
from ..times import finite
from .calls import LOOK, TIMEOUT, live
from .view import BAR

INTERVAL = 1.0  # seconds between two scores where there is no terminal

CAMERA = typer.Option("", help="The camera that is meant; not needed where there is one alone.")
NAMESPACE = typer.Option("", help="Namespace of the perception node.")
WAIT = typer.Option(
    None, min=0.1, callback=finite,
    help=f"Seconds that the node and its answer are waited for. Default: {LOOK:g} and {TIMEOUT:g}.",
)  # fmt: skip
JSON = typer.Option(False, "--json", help="Print JSON.")
LINES = typer.Option(False, "--json", help="Print JSON Lines, one for each score.")
LABELS = typer.Argument(..., help="What it may be, in words.")
CANDIDATE = typer.Option(None, help="A possible answer; again for more. None: an open answer.")


def ask(
    question: str = typer.Argument(..., help='E.g. "what colour is the cube?"'),
    candidate: list[str] = CANDIDATE,
    camera: str = CAMERA,
    namespace: str = NAMESPACE,
    timeout: Optional[float] = WAIT,
    as_json: bool = JSON,
) -> None:
    """Ask what a camera sees now."""
    candidates = list(candidate or ())
    with live("ask", namespace, timeout) as graph:
        answer = graph.result(graph.client.ask(question, candidates, camera))
    matches = _matches(candidates, answer)
    if as_json:
        print_json(
            record(
                "ask", camera=camera, stamp=to_ns(answer.stamp), answer=answer.answer,
                scores=scored(matches), threshold=answer.threshold if candidates else None,
                familiarity=answer.familiarity, message=answer.message,
            )
        )  # fmt: skip
    elif candidates:
        _print_matches(sorted(matches, key=lambda match: -match.cosine), answer.threshold)
    else:
        console.print(answer.answer)
    if answer.message:
        notice(answer.message)


def classify(
    label: list[str] = LABELS,
    camera: str = CAMERA,
    template: str = typer.Option("", help='A sentence around each label, e.g. "a video of {}".'),
    namespace: str = NAMESPACE,
    timeout: Optional[float] = WAIT,
    as_json: bool = JSON,
) -> None:
    """Score labels against what a camera sees now, the best first."""
    with live("classify", namespace, timeout) as graph:
        found = graph.result(graph.client.classify(label, camera, template))
    matches = _matches(found.labels, found)
    if as_json:
        print_json(
            record(
                "classify", camera=camera, stamp=to_ns(found.stamp), scores=scored(matches),
                threshold=found.threshold, familiarity=found.familiarity, message=found.message,
            )
        )  # fmt: skip
    else:
        _print_matches(matches, found.threshold)
    if found.message:
        notice(found.message)


def watch(
    text: str = typer.Argument(..., help='The condition, e.g. "the red cube falls".'),
    camera: str = CAMERA,
    threshold: float = typer.Option(
        0.0,
        min=0.0,
        max=1.0,
        callback=finite,
        help="Cosine from which on it is true; 0: the calibrated one.",
    ),
    timeout: float = typer.Option(
        0.0, min=0.0, callback=finite, help="Seconds to watch; 0: until it is true."
    ),
    namespace: str = NAMESPACE,
    as_json: bool = LINES,
) -> None:
    """Wait until a condition is true: exit code 0, as soon as it is; 1 if it does not become so."""

    def print_score(score: float, stamp_ns: int) -> None:
        about = {"camera": camera, "stamp": stamp_ns, "text": text, "score": score}
        print_json(record("watch: score", **about), line=True)

    with live("watch", namespace) as graph, _Score(shown=not as_json) as score:
        show = print_score if as_json else score.show
        call = graph.client.watch(text, camera, threshold, timeout, show)
        moment = graph.result(call, f"'{text}' was true")
    if as_json:
        found = record(
            "watch: moment", camera=moment.camera, segment_id=moment.segment_id,
            start=to_ns(moment.start), end=to_ns(moment.end), text=text, score=moment.score,
            familiarity=moment.familiarity,
        )  # fmt: skip
        print_json(found, line=True)
    else:
        at = clock(to_ns(moment.end))
        familiar = f", familiar {moment.familiarity:.2f}" if moment.familiarity >= 0 else ""
        console.print(f"{at}  {moment.camera}  true  ({moment.score:.2f}{familiar})")


class _Score:
    """The score while it is watched: one line with a bar on a terminal, else a line now and then.

    It goes to stdout as long as nothing else does; with `shown=False` nowhere.
    """

    def __init__(self, shown: bool) -> None:
        self._screen: Screen | None = None
        self._lines = shown and not console.is_terminal
        if shown and console.is_terminal:
            self._screen = Screen(console=console, auto_refresh=False, transient=True)
        self._printed = float("-inf")

    def __enter__(self) -> _Score:
        if self._screen is not None:
            self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen is not None:
            self._screen.stop()

    def show(self, score: float, stamp_ns: int) -> None:
        """The score at an image's stamp."""
        if self._screen is not None:
            filled = round(BAR * min(max(score, 0.0), 1.0))
            bar = "█" * filled + "·" * (BAR - filled)
            self._screen.update(Text(f"{clock(stamp_ns)}  {bar} {score:5.2f}"), refresh=True)
        elif self._lines and time.monotonic() - self._printed >= INTERVAL:
            self._printed = time.monotonic()
            console.print(f"{clock(stamp_ns)}  {score:.2f}")


def _matches(texts: Sequence[str], response: Any) -> list[Match]:
    """Of a response of `ask` or `classify`; none for an open answer."""
    return [
        Match(text, score, cosine, cosine < response.threshold)
        for text, score, cosine in zip(texts, response.scores, response.cosines)
    ]


def _print_matches(matches: Sequence[Match], threshold: float) -> None:
    """A line each, under a heading; one alone has no share."""
    alone = len(matches) == 1
    console.print(f"{'' if alone else 'score  '}cosine  (weak below {threshold:.2f})")
    for match in matches:
        share, weak = "" if alone else f"{match.score:5.2f}  ", "  (weak)" if match.weak else ""
        console.print(f"{share}{match.cosine:6.2f}  {match.text}{weak}")
