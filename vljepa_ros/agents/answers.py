"""What the tools answer: models whose descriptions a language model reads.

Invariant: every time is there twice, as a calendar has it and as an age; what is not known, or
goes without saying, is left out.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

TIME = "ISO 8601, UTC; in seconds where the robot's clock is no calendar's"


class Told(BaseModel):
    """What a tool tells, without the fields that have their default: each word costs."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in dump(self).items() if value != defaults[name]}


class Event(Told):
    """A stretch of time in which a camera saw one thing."""

    camera: str
    text: str = Field(description="what the robot said of it; empty: it said nothing")
    start: str = Field(description=f"when it began: {TIME}")
    ago: str = Field(description="how long ago it began")
    seconds: float = Field(description="how long it lasted, or has lasted until now")
    going_on: bool = Field(False, description="whether it is what the camera sees now")
    confidence: float | None = Field(
        None, description="cosine between the words and what was seen, -1 to 1; above 0.5 is good"
    )
    question: str = Field("", description="the standing question that the text answers, of several")


class Now(Told):
    """What each camera sees."""

    cameras: list[Event]
    notes: list[str] = Field([], description="what else is to be known, in sentences")


class Recent(Told):
    """What has happened, the oldest first."""

    events: list[Event]
    since: str = Field(description=f"the beginning of the time that was looked at: {TIME}")
    notes: list[str] = Field([], description="what else is to be known, in sentences")


class Score(Told):
    """A possible answer and how well it fits."""

    text: str
    score: float = Field(
        description="probability among those that were given, sums to 1; of one alone its cosine"
    )
    cosine: float = Field(description="how well it fits by itself, -1 to 1")
    weak: bool = Field(description="it does not fit: its cosine is below the model's threshold")


class Answer(Told):
    """An answer about what a camera sees."""

    answer: str
    camera: str
    scores: list[Score] = Field([], description="the candidates, best first; none: an open answer")
    time: str = Field(description=f"of the picture that it is about: {TIME}")
    ago: str
    familiarity: float | None = Field(
        None, description="0 to 1, how much the picture is like what the model was made for"
    )
    note: str = Field("", description="what to make of the answer; mostly empty")


class Watched(Told):
    """How waiting for a condition has ended."""

    happened: bool = Field(description="whether it became true while it was waited for")
    text: str
    camera: str
    best_score: float | None = Field(
        None, description="the best cosine while it was waited for; null: no picture came"
    )
    threshold: float = Field(description="the cosine from which on it counts as true")
    time: str = Field("", description=f"when it became true: {TIME}")
    ago: str = ""
    note: str = Field("", description="what else is to be known")
