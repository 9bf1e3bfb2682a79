"""What the commands print with `--json`: records, of which a table says what is in them.

Invariant: a record has exactly the names of its kind, in the order of FIELDS, whoever prints it; a
time is two, `NAME` in ISO 8601 and `NAME_ns` in nanoseconds. What is not known is null. The tables
of docs/command-line.md are written from here by `python scripts/json_tables.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vljepa_ros.stamps import iso

if TYPE_CHECKING:
    from vljepa_ros.memory.moment import Moment

DIGITS = 4  # behind the point, of numbers that are measured


@dataclass(frozen=True)
class Field:
    """What a name stands for, in every record. `kind`: how it is written, of KINDS."""

    kind: str
    meaning: str


KINDS = {
    "text": "a string",
    "flag": "true or false",
    "integer": "a whole number",
    "number": f"a number, to {DIGITS} digits",
    "time": "two: `NAME` in ISO 8601 (UTC; null where the stamp comes from no calendar), and "
    "`NAME_ns`, nanoseconds, a whole number",
    "list": "a list",
    "object": "an object",
}

# Every name, in the order in which records have them.
FIELDS: dict[str, Field] = {
    "type": Field("text", "which of a command's records it is, where a line may be one of several"),
    "id": Field("text", "the moment's name in the store, to pin it with"),
    "recording": Field("text", "the file or folder that the moment was found in"),
    "folder": Field("text", "the folder of the store, or the server and its collection"),
    "file": Field("text", "the engine's file; where that is not whole, the one that describes it"),
    "problem": Field("text", "why it cannot be used; empty where it can"),
    "graph": Field("text", "the bundle's graph that it runs"),
    "precision": Field("text", "the precision that it was built for"),
    "library": Field("text", "the library that runs it"),
    "version": Field("text", "that library's version"),
    "gpu": Field("text", "the GPU that it was built for"),
    "capability": Field("text", "that GPU's compute capability"),
    "profile": Field("object", "least, usual and most of each size that is not fixed"),
    "options": Field("list", "what it was built with beside"),
    "workspace_mib": Field("integer", "MiB of memory that a layer may use"),
    "namespace": Field("text", "the namespace that the stream is in, without slashes at its ends"),
    "robot": Field("text", "the robot that saw it"),
    "camera": Field("text", "the camera; empty where the question named none, as there is one"),
    "episode": Field("integer", "its number, where that is an episode of a data set; `start` and "
                     "`end` are positions in it"),
    "task": Field("text", "what was to be done in the episode; empty where nobody said"),
    "query": Field("text", "the standing question that it answers"),
    "model_id": Field("text", "name, version and fingerprint of the bundle"),
    "embedding_dim": Field("integer", "how many numbers an embedding has"),
    "stream_id": Field("integer", "the stream that it belongs to"),
    "segment_id": Field("integer", "the segment that it belongs to, or that opens"),
    "sequence": Field("integer", "counts the embeddings of a camera and query"),
    "stamp": Field("time", "of the newest image that it is about"),
    "window_start": Field("time", "of the oldest image that it is about"),
    "start": Field("time", "where the segment, the moment, or what is stored begins"),
    "end": Field("time", "where it ends"),
    "position": Field("number", "seconds from the beginning of its video or episode to `start`; "
                      "null where it is of none"),
    "built": Field("time", "when it was built"),
    "text": Field("text", "what was said; of a watch, the condition"),
    "answer": Field("text", "the answer in words, or the best candidate"),
    "source": Field("text", "who put it into words"),
    "score": Field("number", "cosine between what was asked for and what was seen, -1 to 1"),
    "weak": Field("flag", "its score is below the bundle's threshold"),
    "scores": Field("list", "an object for each candidate or label: `text`, `score`, softmax (of "
                    "one alone its cosine), `cosine`, -1 to 1, and `weak`: it is below "
                    "`threshold`"),
    "threshold": Field("number", "cosine below which a match is weak: the bundle's; null for an "
                       "open answer"),
    "confidence": Field("number", "cosine between the words and what was seen, -1 to 1"),
    "change_score": Field("number", "how far the meaning has moved; 1 is a change"),
    "reused": Field("flag", "nothing new was found, and the last embedding stands"),
    "latency": Field("number", "seconds from the image's stamp to publication"),
    "decode_time": Field("number", "seconds that putting it into words took"),
    "familiarity": Field("number", "how much it is like what the model was made for, 0 to 1"),
    "pinned": Field("flag", "it is kept when the store is full"),
    "message": Field("text", "what to make of the answer, in a sentence; mostly empty"),
    "embedding": Field("list", "the embedding, of unit length"),
    "moments": Field("integer", "how many moments there are, or were made"),
    "new_moments": Field("integer", "how many of them the store did not have"),
    "pinned_moments": Field("integer", "how many of them are pinned"),
    "cameras": Field("object", "how many moments there are of each camera, by its name"),
    "megabytes": Field("number", "the size of the store, or of the engine"),
    "cosine": Field("number", "the least between what it gives and what the CPU does"),
    "recorded": Field("number", "seconds of recordings that were looked at"),
    "took": Field("number", "seconds that it took"),
    "problems": Field("list", "what could not be used, in sentences"),
    "nodes": Field("list", "an object with `name`, `state`, `model_id`, `at` (a page's address, "
                   "a store's folder, a camera's source), `words` (who says them), `engines` "
                   "and `problems` for each node"),
    "streams": Field("list", "an object with `name` (the perception node's), `model_id`, "
                     "`queries`, `cameras` and `settings` for each; a setting has `name`, `value` "
                     "and `origin`: parameter, bundle or calibration"),
    "ok": Field("flag", "the robot could run here"),
    "would_run": Field("text", "the backend that `auto` would take"),
    "checks": Field("list", "an object with `name`, `state` (works, note, broken), `found` and "
                    "`fix` for each"),
    "backends": Field("list", "the same for each backend, in the order of preference"),
}  # fmt: skip

_SAID = ("camera", "query", "model_id", "stream_id", "segment_id")
_MOMENT = (
    "id", "robot", "camera", "episode", "task", "query", "segment_id", "start", "end",
    "position", "text", "familiarity", "pinned",
)  # fmt: skip

# The names of each kind of record, by the command that prints it; of several in a stream, by type.
RECORDS: dict[str, tuple[str, ...]] = {
    "status": ("nodes", "streams"),
    "ask": ("camera", "stamp", "answer", "scores", "threshold", "familiarity", "message"),
    "classify": ("camera", "stamp", "scores", "threshold", "familiarity", "message"),
    "watch: score": ("type", "camera", "stamp", "text", "score"),
    "watch: moment": (
        "type", "camera", "segment_id", "start", "end", "text", "score", "familiarity",
    ),
    "listen: change": (
        "type", "namespace", *_SAID, "stamp", "start", "change_score", "familiarity",
    ),
    "listen: utterance": (
        "type", "namespace", *_SAID, "stamp", "start", "text", "source", "confidence",
        "decode_time", "familiarity",
    ),
    "listen: embedding": (
        "type", "namespace", *_SAID, "sequence", "stamp", "window_start", "change_score", "reused",
        "latency", "familiarity", "embedding",
    ),
    "recall": (*_MOMENT, "score", "weak"),
    "memory show": (
        "folder", "model_id", "embedding_dim", "start", "end", "moments", "pinned_moments",
        "cameras", "megabytes",
    ),
    "memory list": _MOMENT,
    "index: moment": ("type", "recording", *_MOMENT),
    "index: summary": (
        "type", "folder", "moments", "new_moments", "recorded", "took", "problems",
    ),
    "doctor": ("ok", "would_run", "checks", "backends"),
    "engines list": (
        "file", "problem", "graph", "precision", "library", "version", "gpu", "capability",
        "profile", "options", "workspace_mib", "built", "megabytes", "cosine", "took",
    ),
}  # fmt: skip

# What the benchmarks print: reports, with figures below these names.
REPORTS: dict[str, tuple[str, ...]] = {
    "bench engines": ("model_id", "machine", "threads", "engines", "growth", "not_measured"),
    "bench cost": (
        "preset", "machine", "parts", "growth", "runs", "peak_gflop_per_s", "peak_of",
    ),
    "bench node": (
        "model_id", "engines", "cameras", "size", "fps", "seconds", "steps", "stages_of_last",
        "frames", "added", "stages", "age_bound_ms", "parameter_answer_ms", "rough", "utterances",
        "memory",
    ),
    "bench services": (
        "model_id", "engines", "camera_fps", "ask", "predictor", "open", "classify", "added_ms",
        "crowd", "watches", "vlm", "phrases",
    ),
    "bench memory": (
        "moments", "dim", "thumbnails", "moments_per_s", "one_at_the_limit_ms", "disk_mb",
        "store", "numpy",
    ),
}  # fmt: skip


def record(kind: str, **values: Any) -> dict[str, Any]:
    """A record of RECORDS as JSON has it; times are given in nanoseconds, None: not known.

    `type` follows from the kind. ValueError where a name is missing, or is none of its kind.
    """
    names = RECORDS[kind]
    if "type" in names:
        values["type"] = kind.partition(": ")[2]
    if values.keys() != set(names):
        raise ValueError(f"'{kind}' has other names: {sorted(values.keys() ^ set(names))}.")
    found: dict[str, Any] = {}
    for name in ordered(names):
        value = values[name]
        if FIELDS[name].kind == "time":
            found[name] = None if value is None else iso(value)
            name = f"{name}_ns"
        elif name in ("familiarity", "episode") and value < 0:
            value = None
        elif FIELDS[name].kind == "number" and value is not None:
            value = _rounded(value)
        found[name] = value
    return found


def moment_record(kind: str, moment: Moment, **more: Any) -> dict[str, Any]:
    """A record of a moment, with what its kind has beside."""
    return record(kind, **{name: _of(moment, name) for name in _MOMENT}, **more)


class Match(NamedTuple):
    """How well a text fits: its share of 1 (of one alone its cosine), and its cosine."""

    text: str
    score: float
    cosine: float
    weak: bool


def scored(matches: Iterable[Match]) -> list[dict[str, Any]]:
    """The field `scores`."""
    return [
        {"text": m.text, "score": _rounded(m.score), "cosine": _rounded(m.cosine), "weak": m.weak}
        for m in matches
    ]


def ordered(names: Iterable[str]) -> list[str]:
    """Names in the order of FIELDS."""
    wanted = set(names)
    return [name for name in FIELDS if name in wanted]


def _of(moment: Moment, name: str) -> Any:
    return getattr(moment, f"{name}_ns" if FIELDS[name].kind == "time" else name)


def _rounded(value: float) -> float | None:
    return round(float(value), DIGITS) if math.isfinite(value) else None
