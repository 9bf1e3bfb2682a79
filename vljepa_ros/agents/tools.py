"""The tools: what a language model may ask of a robot's perception.

Invariant: they only look and ask, so that nothing on the robot moves or changes by them; each ends
with an answer or with one sentence that says what to do. Their descriptions are what a language
model knows of them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent
from pydantic import Field

from vljepa_ros.client import SemanticTimeout
from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.stamps import SECOND_NS, to_ns

from .answers import Answer, Event, Now, Recent, Score, Watched
from .graph import TICK, Graph
from .history import Segment
from .when import ago, iso, parse_time

MOMENTS = 100  # that the memory node gives at most
LONGEST = 600.0  # seconds of a watch
DAY = 86400.0
FIRST = 1.0  # seconds in which the settings come, once they are asked for

Report = Callable[[], dict[str, Any]]

Camera = Annotated[str, Field(description="Name of the camera; empty where there is only one.")]
Cameras = Annotated[str, Field(description="Name of the camera; empty: all of them.")]
When = "an ISO 8601 time, or an age such as '90 s ago', '5 min ago', '2 h ago'; empty: no bound."


class Tools:
    """The tools, for one graph. `report`: how its nodes are, as `vljepa status` has it."""

    def __init__(self, graph: Graph, report: Report) -> None:
        self._graph = graph
        self._report = report

    async def what_is_happening(self, camera: Cameras = "") -> Now:
        """What the robot's cameras see right now, in words, and since when.

        Start here. It costs nothing: it is what the robot says anyway. Use `ask` for a question of
        your own about the same picture, `look` to see it yourself, `recent` for what was before.
        """
        cameras = await self._graph.cameras(camera)
        found = await asyncio.gather(*(self._now(name) for name in cameras))
        return Now(
            cameras=[event for events, _ in found for event in events],
            notes=[note for _, notes in found for note in notes] or _none(cameras),
        )

    async def ask(
        self,
        question: Annotated[str, Field(description="e.g. 'What colour is the cube?'")],
        candidates: Annotated[
            list[str] | None,
            Field(description="Possible answers, e.g. ['red', 'blue']. Give them wherever you can: "
                  "choosing is far more reliable than an open answer."),
        ] = None,
        camera: Camera = "",
    ) -> Answer:  # fmt: skip
        """Ask a question about what a camera sees right now (not about the past).

        With candidates it chooses among them and says how sure it is; the best one wins even if
        none of them is true: mind which are weak. The model is small: ask about colours,
        shapes, places, actions and counts of what is in view, not for reasons or reading.
        """
        given = list(candidates or ())
        found = await self._graph.result(self._graph.client.ask(question, given, camera))
        scores = sorted(_scores(given, found), key=lambda one: -one.cosine)
        return self._answer(found, found.answer, scores, camera)

    async def classify(
        self,
        labels: Annotated[
            list[str],
            Field(description="What may be seen, each as a short statement, e.g. ['a hand is in "
                  "view', 'nothing moves']; two at least."),
        ],
        camera: Camera = "",
    ) -> Answer:  # fmt: skip
        """Which of several descriptions fits what a camera sees right now, best first.

        The probabilities are among your labels alone: one of them always wins. Mind which are weak.
        """
        found = await self._graph.result(self._graph.client.classify(labels, camera))
        scores = _scores(found.labels, found)
        return self._answer(found, found.labels[0], scores, camera)

    async def watch(
        self,
        text: Annotated[
            str, Field(description="The condition as a statement, e.g. 'a hand passes over the "
                       "table'; not a question.")
        ],
        context: Context,
        timeout: Annotated[
            float, Field(gt=0, le=LONGEST, description="Seconds to wait at most.")
        ] = 30.0,
        camera: Camera = "",
        threshold: Annotated[
            float, Field(ge=0, le=1, description="Cosine from which on it counts as true; 0: the "
                         "calibrated one, which is right in most cases.")
        ] = 0.0,
    ) -> Watched:  # fmt: skip
        """Wait until something happens, and return as soon as it does.

        Use this instead of asking again and again. Progress tells the best score so far. If it has
        not happened within `timeout` seconds, `happened` is false: call it again to wait on. What
        is already true counts at once; for what has happened before, use `recent` or `recall`.
        """
        graph, best = self._graph, [-1.0]
        standard = graph.info.watch_threshold if graph.info is not None else 0.0
        wanted = threshold or standard

        async def on_best(score: float) -> None:
            best.append(score)
            await context.report_progress(
                round(score, 4), round(wanted, 4) or None,
                f"best score so far {score:.2f} of {wanted:.2f}",
            )  # fmt: skip

        try:
            moment = await graph.watch(text, camera, threshold, timeout, on_best)
        except SemanticTimeout as error:
            return Watched(
                happened=False, text=text, camera=self._camera(camera), note=str(error),
                best_score=_rounded(best[-1]) if best[1:] else None, threshold=_rounded(wanted),
            )  # fmt: skip
        at_ns = to_ns(moment.end)
        return Watched(
            happened=True, text=text, camera=moment.camera, best_score=_rounded(moment.score),
            threshold=_rounded(wanted), time=iso(at_ns),
            ago=ago(graph.now_ns(moment.camera) - at_ns), note=self._strange(moment.familiarity),
        )  # fmt: skip

    async def recent(
        self,
        seconds: Annotated[
            float, Field(gt=0, le=DAY, description="How far to look back, in seconds.")
        ] = 60.0,
        camera: Cameras = "",
    ) -> Recent:
        """What has happened in the last seconds or minutes, in the order of time.

        The answer to "what happened (while I was away)?". Each event is what the robot said of a
        stretch of time. To find one thing in a longer past, use `recall`.
        """
        graph = self._graph
        cameras = await graph.cameras(camera)
        found = await asyncio.gather(*(self._past(name, seconds) for name in cameras))
        events = [event for events, _ in found for event in events]
        notes = [note for _, notes in found for note in notes]
        now_ns = min((graph.now_ns(name) for name in cameras), default=graph.now_ns())
        return Recent(
            events=[told for _, told in sorted(events, key=lambda pair: pair[0])],
            since=iso(max(0, now_ns - round(seconds * SECOND_NS))), notes=notes or _none(cameras),
        )  # fmt: skip

    async def recall(
        self,
        text: Annotated[
            str, Field(description="What to look for, as a statement, e.g. 'the mug falls off the "
                       "table'.")
        ],
        camera: Cameras = "",
        after: Annotated[str, Field(description=f"Only what ended after this time: {When}")] = "",
        before: Annotated[str, Field(description=f"Only what began before this time: {When}")] = "",
        limit: Annotated[
            int, Field(ge=1, le=20, description="At most so many moments, each with a picture.")
        ] = 3,
    ) -> CallToolResult:  # fmt: skip
        """Find moments of the past by their meaning, best first, each with a picture of it.

        Searches all that the robot's memory holds, up to days. It always returns the nearest, also
        where nothing fits: mind the scores, and look at the pictures. What goes on right now is not
        in it yet.
        """
        graph = self._graph
        now_ns = graph.now_ns(self._camera(camera))
        since, until = (
            parse_time(name, given, now_ns) / SECOND_NS or None
            for name, given in (("after", after), ("before", before))
        )
        found = await graph.result(
            graph.client.recall(text, [camera] if camera else [], since, until, limit)
        )
        moments = [self._moment(moment) for moment in found.moments]
        said = found.message or self._judged(found.moments)
        content: list[ContentBlock] = [TextContent(type="text", text=said)]
        for moment, told in zip(found.moments, moments):
            content.append(TextContent(type="text", text=json.dumps(told, ensure_ascii=False)))
            content += _picture(bytes(moment.thumbnail.data))
        return CallToolResult(
            content=content, structured_content={"moments": moments, "note": said}
        )

    async def look(self, camera: Camera = "") -> CallToolResult:
        """See for yourself: what a camera shows right now, as a small picture."""
        name = await self._graph.camera(camera)
        stamp_ns, jpeg = await self._graph.picture(name)
        told = {
            "camera": name, "time": iso(stamp_ns), "ago": ago(self._graph.now_ns(name) - stamp_ns)
        }  # fmt: skip
        text = TextContent(type="text", text=json.dumps(told, ensure_ascii=False))
        return CallToolResult(content=[text, *_picture(jpeg)], structured_content=told)

    async def status(self) -> dict[str, Any]:
        """Whether the robot's perception works: its nodes, what is wrong, its cameras and model.

        Use it where another tool failed, or to learn the names of the cameras.
        """
        await self._graph.cameras()
        end = time.monotonic() + FIRST
        while True:
            report = self._report()
            silent = any(one["state"] == "silent" for one in report["nodes"])
            unknown = not all(one["settings"] for one in report["streams"])
            if not ((silent and self._graph.joining) or (unknown and time.monotonic() < end)):
                return report
            await asyncio.sleep(TICK)

    # -------------------------------------------------------------- inside

    async def _now(self, camera: str) -> tuple[list[Event], list[str]]:
        """What a camera sees, and what is to be said of that."""
        graph = self._graph
        if silence := graph.silence(camera):
            last = [one for one in graph.history.segments(camera) if one.text]
            if last:
                event = self._event(last[-1], silence)
                silence += f" The last that was said is '{event.text}', of {event.ago}."
            return [], [silence]
        events, notes = [], []
        for segment in graph.history.segments(camera):
            if segment.end_ns is None:
                notes += await self._put_into_words(segment)
                events.append(self._event(segment))
        return events, notes

    async def _put_into_words(self, segment: Segment) -> list[str]:
        """Ask what is seen now where nothing was said of it; what is to be said of that."""
        camera = segment.camera
        if strange := self._strange(segment.familiarity):
            return [f"{camera}: {strange}"]
        if segment.text:
            return []
        try:
            answer = await self._graph.result(self._graph.client.ask(segment.query, (), camera))
        except VLJepaError as error:
            return [f"{camera}: {error}"]
        segment.text, segment.confidence = answer.answer, None
        return []

    async def _past(self, camera: str, seconds: float) -> tuple[list[tuple[int, Event]], list[str]]:
        """A camera's events with their starts, and what is to be said of them."""
        graph = self._graph
        now_ns, silence = graph.now_ns(camera), graph.silence(camera)
        begin_ns = max(0, now_ns - round(seconds * SECOND_NS))
        notes = [silence] if silence else []
        known: list[Any] = []
        segments = graph.history.segments(camera, begin_ns)
        if begin_ns < _first_whole(segments, now_ns):
            known, note = await self._remembered(camera, begin_ns, now_ns)
            notes += [note] if note else []
            segments = graph.history.segments(camera, begin_ns)  # as it is by now
        first_ns = _first_whole(segments, now_ns)
        known = [moment for moment in known if to_ns(moment.start) < first_ns]
        covered_ns = max((to_ns(moment.end) for moment in known), default=begin_ns)
        # What was going on when this server came is in the memory once it is over.
        partial = [one for one in segments if not one.whole and one.start_ns >= covered_ns]
        for one in partial:
            if one.end_ns is None and not silence:
                notes += await self._put_into_words(one)
            if known and one.start_ns - covered_ns > SECOND_NS:
                notes.append(
                    f"{camera}: what was from {iso(covered_ns)} to {iso(one.start_ns)} is known "
                    "once it is over: ask again."
                )
        heard = [*partial, *(one for one in segments if one.whole)]
        events = [(to_ns(moment.start), self._remembered_event(moment)) for moment in known]
        return events + [(one.start_ns, self._event(one, silence)) for one in heard], notes

    async def _remembered(self, camera: str, begin_ns: int, end_ns: int) -> tuple[list[Any], str]:
        """The Moments of a time that was not heard whole; what is to be said of them."""
        graph = self._graph
        since = f"I have listened for {graph.heard_for:.0f} s"
        if not await graph.offers("recall"):
            return [], f"{since}; what was before is not known, as no memory node runs."
        query = graph.info.queries[0] if graph.info is not None and graph.info.queries else ""
        try:
            # Which text it is does not matter: all moments of that time are wanted.
            found = await graph.result(
                graph.client.recall(
                    query or "what is seen", [camera], begin_ns / SECOND_NS, end_ns / SECOND_NS,
                    MOMENTS,
                )
            )  # fmt: skip
        except VLJepaError as error:
            return [], f"{since}; what was before is not known: {error}"
        if len(found.moments) < MOMENTS:
            return list(found.moments), ""
        return list(found.moments), f"There is more than {MOMENTS} moments; ask for a shorter time."

    def _remembered_event(self, moment: Any) -> Event:
        start_ns, end_ns = to_ns(moment.start), to_ns(moment.end)
        return Event(
            camera=moment.camera, text=moment.text, start=iso(start_ns),
            ago=ago(self._graph.now_ns(moment.camera) - start_ns),
            seconds=_rounded((end_ns - start_ns) / 1e9, 1), question=self._question(moment.query),
        )  # fmt: skip

    def _event(self, segment: Segment, silence: str = "") -> Event:
        now_ns = self._graph.now_ns(segment.camera)
        open_end = segment.last_ns if silence else now_ns
        end_ns = open_end if segment.end_ns is None else segment.end_ns
        return Event(
            camera=segment.camera, text=segment.text, start=iso(segment.start_ns),
            ago=ago(now_ns - segment.start_ns),
            seconds=max(0.0, _rounded((end_ns - segment.start_ns) / 1e9, 1)),
            going_on=segment.end_ns is None and not silence,
            confidence=None if segment.confidence is None else _rounded(segment.confidence),
            question=self._question(segment.query),
        )  # fmt: skip

    def _question(self, query: str) -> str:
        """The standing question, where there are several."""
        info = self._graph.info
        return query if info is not None and len(info.queries) > 1 else ""

    def _answer(self, found: Any, answer: str, scores: list[Score], camera: str) -> Answer:
        name, stamp_ns = self._camera(camera), to_ns(found.stamp)
        return Answer(
            answer=answer, camera=name, time=iso(stamp_ns),
            ago=ago(self._graph.now_ns(name) - stamp_ns),
            scores=scores,
            familiarity=_rounded(found.familiarity) if found.familiarity >= 0 else None,
            note=found.message,
        )  # fmt: skip

    def _camera(self, camera: str) -> str:
        """The camera that was meant, where that is known."""
        known = list(self._graph.info.cameras) if self._graph.info is not None else []
        return camera or (known[0] if len(known) == 1 else "")

    def _moment(self, moment: Any) -> dict[str, Any]:
        start_ns, end_ns = to_ns(moment.start), to_ns(moment.end)
        told = {
            "camera": moment.camera, "text": moment.text, "score": _rounded(moment.score),
            "start": iso(start_ns), "end": iso(end_ns),
            "ago": ago(self._graph.now_ns(moment.camera) - start_ns),
            "seconds": _rounded((end_ns - start_ns) / 1e9, 1),
        }  # fmt: skip
        return told | ({"robot": moment.robot} if moment.robot else {})

    def _judged(self, moments: Any) -> str:
        """What to make of the scores."""
        info = self._graph.info
        if info is None:
            return f"{counted(len(moments), 'moment')}, best first."
        fit = sum(moment.score >= info.watch_threshold for moment in moments)
        return (
            f"{counted(len(moments), 'moment')}, best first; {fit} of them reach "
            f"{info.watch_threshold:.2f}, the score from which on a statement counts as true. The "
            "others are only the nearest."
        )

    def _strange(self, familiarity: float) -> str:
        """What is to be said where the model does not know what is seen; else empty."""
        info = self._graph.info
        if info is None or not 0 <= familiarity < info.familiarity_threshold:
            return ""
        return (
            f"the model does not know what is seen here (familiarity {familiarity:.2f}, known from "
            f"{info.familiarity_threshold:.2f} on), so what it says of it means little."
        )


def _first_whole(segments: list[Segment], now_ns: int) -> int:
    """Where the first segment begins that was heard whole; `now_ns` where there is none."""
    return next((one.start_ns for one in segments if one.whole), now_ns)


def _scores(texts: Sequence[str], found: Any) -> list[Score]:
    """How well each text fits, of a response of `ask` or `classify`."""
    return [
        Score(
            text=text, score=_rounded(score), cosine=_rounded(cosine),
            weak=cosine < found.threshold,
        )
        for text, score, cosine in zip(texts, found.scores, found.cosines)
    ]  # fmt: skip


def _picture(jpeg: bytes) -> list[ImageContent]:
    if not jpeg:
        return []
    data = base64.b64encode(jpeg).decode()
    return [ImageContent(type="image", data=data, mime_type="image/jpeg")]


def _none(cameras: list[str]) -> list[str]:
    if cameras:
        return []
    return ["The perception node is there but not active, so no camera is seen; see its log."]


def _rounded(value: float, digits: int = 4) -> float:
    return round(float(value), digits)
