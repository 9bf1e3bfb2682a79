"""Texts that people and agents send: what may be asked, of which camera, and how it is scored.

Invariant: what a check lets through is one line of at most 1,000 characters without controls.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.errors import VLJepaError

MOST_CHARACTERS = 1000  # of a question, a label, a condition
MOST_TEXTS = 1000  # candidates or labels of one request
_SHOWN = 40  # characters of a text in an error


class QuestionError(VLJepaError):
    """What was asked cannot be answered."""


def checked_text(what: str, text: str) -> str:
    """`text` with every run of blanks and line breaks as one space.

    QuestionError, naming `what`, where it is empty, longer than 1,000 characters, or holds control
    characters, which no tokenizer was trained on and which would garble logs and terminals.
    """
    if len(text) > MOST_CHARACTERS:
        raise QuestionError(
            f"The {what} has {len(text):,} characters; {MOST_CHARACTERS:,} is the most."
        )
    plain = " ".join(text.split())
    if not plain:
        raise QuestionError(f"The {what} is empty; put it in words.")
    for letter in plain:
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise QuestionError(
                f"The {what} holds the control character U+{ord(letter):04X}; take it out."
            )
    return plain


def checked_texts(what: str, texts: Sequence[str], distinct: bool = True) -> tuple[str, ...]:
    """Each of at most 1,000 texts as `checked_text` gives it.

    QuestionError also on duplicates, where they are to be `distinct`.
    """
    if len(texts) > MOST_TEXTS:
        raise QuestionError(f"There are {len(texts):,} {what}s; {MOST_TEXTS:,} is the most.")
    seen: list[str] = []
    known: set[str] = set()
    for text in texts:
        plain = checked_text(what, text)
        if distinct and plain in known:
            raise QuestionError(f"The {what} '{shown(plain)}' is there twice; give each once.")
        known.add(plain)
        seen.append(plain)
    return tuple(seen)


def checked_template(template: str) -> str:
    """A template for labels; QuestionError unless it holds {} exactly once."""
    plain = checked_text("template", template)
    if plain.count("{}") != 1:
        raise QuestionError(
            f"The template '{shown(plain)}' must hold {{}} once, where the label goes, as in "
            "'a video of {}'."
        )
    return plain


def shown(text: str) -> str:
    """As much of a text as an error says."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def find_camera(name: str, ready: Mapping[str, bool]) -> str:
    """The camera that `name` means; empty: the only one. QuestionError where there is none.

    `ready`: the cameras, and whether each has seen a whole clip.
    """
    if not name and len(ready) > 1:
        raise QuestionError(f"Name one of the cameras: {_listed(ready)}.")
    found = name or next(iter(ready))
    if found not in ready:
        raise QuestionError(f"There is no camera '{shown(name)}'; there are: {_listed(ready)}.")
    return found


def not_ready(camera: str, ready: Mapping[str, bool]) -> QuestionError:
    """The camera has not seen a whole clip."""
    return QuestionError(
        f"Camera '{camera}' has not seen a whole clip yet; see that it publishes, then ask again. "
        f"The cameras are: {_listed(ready)}."
    )


def _listed(ready: Mapping[str, bool]) -> str:
    return ", ".join(n if is_ready else f"{n} (nothing seen yet)" for n, is_ready in ready.items())


def note(bundle: Bundle, familiarity: float, means: str) -> str:
    """What to make of an answer about what has this `familiarity`; empty where it is known.

    `means`: what may mean nothing, e.g. "the answer".
    """
    if not bundle.is_unfamiliar(familiarity):
        return ""
    return (
        f"The model does not know what is seen here (familiarity {familiarity:.2f}, known from "
        f"{bundle.familiarity_threshold:.2f} on): {means} may mean nothing."
    )


def weakness(bundle: Bundle, cosine: float, what: str) -> str:
    """What to make of a match with this `cosine`; empty where the bundle's threshold is reached.

    `what`: what matches so, e.g. "the answer".
    """
    threshold = bundle.thresholds.watch
    if cosine >= threshold:
        return ""
    return (
        f"{what[:1].upper()}{what[1:]} is a weak match: its cosine is {cosine:.2f}, and the "
        f"bundle's threshold {threshold:.2f}."
    )


def scores_of(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """float32 `[N]`: the softmax of two or more cosines `[N]`; of one alone that cosine itself.

    A softmax of one is 1, whatever it is of: a certain answer that nobody gave.
    """
    if len(cosines) == 1:
        return np.asarray(cosines, np.float32)
    return softmax(cosines, temperature)


def softmax(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """float32 `[N]` that sum to 1, of cosines `[N]` over `temperature`, above 0."""
    logits = np.asarray(cosines, np.float64) / temperature
    weights: np.ndarray = np.exp(logits - logits.max(initial=-np.inf))
    return np.asarray(weights / weights.sum(), np.float32)
