"""Events, scenes, questions and answers in words, and back from words to events.

`describe` and `name_event` are inverse for every wording used in training. The wordings of
`unseen` and the words of `SYNONYMS` are never used in training.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .episode import Event
from .vocabulary import (
    COLOURS,
    FALLEN,
    HELD,
    KINDS,
    MOVING,
    OBJECT_KINDS,
    ON_TABLE,
    SHAPES,
    UPRIGHT,
)
from .wordings import MORE_TEMPLATES, REWORDINGS

DEFAULT_QUERY = "What is happening?"

TEMPLATES: dict[str, tuple[str, ...]] = {  # the canonical wording first
    "still": ("nothing is moving", "nothing is happening", "the scene is still",
        "everything is at rest", "the table is quiet", "there is no movement"),
    "reach": ("the gripper reaches for {object}", "the gripper approaches {object}",
        "the gripper moves towards {object}", "the robot reaches out to {object}",
        "the arm is heading for {object}", "the gripper comes near {object}"),
    "pick_up": ("the gripper picks up {object}", "the gripper lifts {object}",
        "the robot grasps {object} and lifts it", "{object} is picked up",
        "the arm raises {object} off the table", "the gripper takes {object} off the table"),
    "carry": ("the gripper carries {object}", "the gripper transports {object}",
        "the robot moves {object} through the air", "{object} is carried to another place",
        "the arm is carrying {object}", "the gripper brings {object} to another place"),
    "put_down": ("the gripper puts down {object}", "the gripper places {object} on the table",
        "the robot sets {object} down", "{object} is put down",
        "the arm lowers {object} onto the table", "the gripper lays {object} down"),
    "drop": ("the gripper drops {object}", "the gripper lets go of {object} in the air",
        "the robot lets {object} fall", "{object} is dropped", "{object} falls from the gripper",
        "the arm releases {object} from above"),
    "push": ("the gripper pushes {object}", "the gripper shoves {object}",
        "the robot pushes {object} along", "{object} is pushed", "the arm nudges {object}",
        "{object} is shoved by the gripper"),
    "tip_over": ("{object} tips over", "{object} falls over", "{object} topples over",
        "{object} is knocked over", "{object} falls onto its side", "{object} is tipping over"),
    "roll": ("{object} rolls across the table", "{object} is rolling", "{object} rolls away",
        "{object} rolls along on its own", "{object} keeps rolling"),
    "slide": ("{object} slides across the table", "{object} is sliding", "{object} slides away",
        "{object} slides along on its own", "{object} keeps sliding"),
    "fall_off": ("{object} falls off the table", "{object} drops off the edge",
        "{object} goes over the edge of the table", "{object} leaves the table and falls",
        "{object} falls to the floor", "{object} is falling off the edge"),
    "retreat": ("the gripper moves away", "the gripper retreats", "the arm pulls back",
        "the robot withdraws its gripper", "the gripper backs off", "the empty gripper leaves"),
    "hand": ("a hand passes over the table", "a hand moves across the view",
        "a hand sweeps over the table", "a human hand is in view",
        "somebody waves a hand over the table", "a person's hand goes by"),
    "cover": ("a hand covers {object}", "a hand hides {object}", "{object} disappears under a hand",
        "{object} is covered by a hand", "somebody puts a hand over {object}",
        "a hand conceals {object}"),
    "uncover": ("the hand uncovers {object}", "the hand reveals {object}",
        "{object} comes into sight again", "{object} is uncovered", "the hand shows {object} again",
        "{object} appears from under the hand"),
}  # fmt: skip

UNSEEN_TEMPLATES: dict[str, tuple[str, ...]] = {
    "still": ("no motion at all", "all is calm"),
    "reach": ("the manipulator goes for {object}", "the claw stretches out to {object}"),
    "pick_up": ("the manipulator hoists {object}", "the claw grabs {object} and elevates it"),
    "carry": ("the manipulator hauls {object} elsewhere", "the claw ferries {object} over"),
    "put_down": ("the manipulator deposits {object}", "the claw rests {object} on the surface"),
    "drop": ("the manipulator lets {object} slip and plummet",
        "the claw loses its hold of {object}"),
    "push": ("the manipulator presses against {object} and displaces it",
        "the claw prods {object}"),
    "tip_over": ("{object} keels over", "{object} is upended"),
    "roll": ("{object} trundles over the surface", "{object} spins onward"),
    "slide": ("{object} glides over the surface", "{object} skids onward"),
    "fall_off": ("{object} tumbles off the table", "{object} plunges to the ground"),
    "retreat": ("the manipulator draws back", "the claw departs"),
    "hand": ("someone's arm crosses above the surface", "fingers of a person go past"),
    "cover": ("someone's palm blocks the view of {object}", "fingers of a person obscure {object}"),
    "uncover": ("someone's palm no longer blocks the view of {object}",
        "fingers of a person unveil {object}"),
}  # fmt: skip
SYNONYMS: dict[str, str] = {
    "red": "crimson", "green": "emerald", "blue": "azure", "yellow": "golden",
    "orange": "tangerine", "purple": "violet", "white": "ivory", "black": "ebony", "cube": "block",
    "ball": "sphere", "can": "tin", "bottle": "flask", "mug": "cup", "book": "volume",
}  # fmt: skip

# What gives a kind away, the most telling first; `name_event` takes the first that is found.
_CUES: tuple[tuple[str, str], ...] = (
    ("uncover", r"uncover|reveal|sight again|shows .*again|from under"),
    ("cover", r"\bcover|\bhides\b|under a hand|puts a hand|conceal"),
    (
        "fall_off",
        r"leaves the table|fall(s|ing)? off|off the edge|over the edge|to the floor",
    ),
    ("drop", r"\bdrop|lets? (go of )?.*(fall|in the air)|lets go|from the gripper|releases"),
    ("tip_over", r"\btip|toppl|knocked over|falls over|onto its side"),
    ("pick_up", r"pick(s|ed|ing)? .*up|picks|picked|lift|grasp|rais|takes"),
    ("carry", r"carr|transport|through the air|brings"),
    ("put_down", r"\bputs?\b|plac|\bsets?\b|lower|\blays?\b"),
    ("push", r"push|shov|nudg"),
    ("roll", r"\broll"),
    ("slide", r"\bslid"),
    ("hand", r"\bhand\b"),
    ("reach", r"reach|approach|toward|heading for|comes near"),
    ("retreat", r"moves away|retreat|pulls back|withdraw|backs off|gripper leaves"),
    ("still", r"nothing|still|at rest|quiet|no movement"),
)
_CUE_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _CUES)
_NUMBERS = ("none", "one", "two", "three", "four")


def object_phrase(pair: tuple[str, str]) -> str:
    """Name an object: ("red", "cube") gives "the red cube"."""
    return f"the {pair[0]} {pair[1]}"


def _worded(
    templates: Sequence[str], event: Event, phrase: str, choice: np.random.Generator | int
) -> str:
    if isinstance(choice, int):
        template = templates[choice % len(templates)]
    else:
        template = templates[int(choice.integers(len(templates)))]
    return template.format(object=phrase)


def describe(
    event: Event, objects: Sequence[tuple[str, str]], choice: np.random.Generator | int = 0
) -> str:
    """An event as a sentence: wording number `choice` (0: canonical), or one drawn by a generator.

    `objects` are the (colour, shape) pairs that `event.object` indexes.
    """
    phrase = "" if event.object is None else object_phrase(objects[event.object])
    return _worded(TEMPLATES[event.kind], event, phrase, choice)


def meanings() -> Iterator[str]:
    """Every canonical sentence and every closed answer."""
    yield from canonical()
    for answers in ANSWERS.values():
        yield from answers


def draw_wording(rng: np.random.Generator) -> tuple[str, str]:
    """A text in any of the words of training, and its meaning: mostly events, some answers."""
    chance = rng.random()
    if chance < 0.1:
        known = list(meanings())
        said = known[int(rng.integers(len(known)))]
        return said, said
    pair = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
    if chance < 0.2:
        said = object_phrase(pair)
        return _reworded(said, rng, 0.8), said
    if chance < 0.25:
        return _reworded(pair[0], rng, 0.9), pair[0]
    kind = str(rng.choice(KINDS))
    return paraphrase(kind, pair, rng), TEMPLATES[kind][0].format(object=object_phrase(pair))


def paraphrase(kind: str, pair: tuple[str, str], rng: np.random.Generator) -> str:
    """A sentence for an event in any of the words of training, also those that clips never get."""
    forms = TEMPLATES[kind] + MORE_TEMPLATES[kind]
    said = forms[int(rng.integers(len(forms)))].format(object=object_phrase(pair))
    return _reworded(said, rng, 0.7)


def _reworded(text: str, rng: np.random.Generator, share: float) -> str:
    def other(found: re.Match[str]) -> str:
        words = REWORDINGS[found[0]]
        return words[int(rng.integers(len(words)))] if rng.random() < share else found[0]

    return _REWORDED.sub(other, text)


REWORDED = 3  # other versions of a sentence: each new text costs the sentence encoder a run


def reword(text: str, version: int) -> str:
    """A sentence with about half of its words that have other words said in those.

    Version 0 is the sentence itself; 1 to `REWORDED` are the same for the same sentence.
    """
    if version == 0:
        return text
    return _reworded(text, np.random.default_rng([version, zlib.crc32(text.encode())]), 0.5)


_REWORDED = re.compile(rf"\b({'|'.join(REWORDINGS)})\b")


def every(
    forms: Callable[[str], str], phrase: Callable[[tuple[str, str]], str]
) -> dict[str, tuple[str, str | None, str | None]]:
    """A sentence of every possible event, and the (kind, colour, shape) it names."""
    found: dict[str, tuple[str, str | None, str | None]] = {}
    for kind in TEMPLATES:
        if kind not in OBJECT_KINDS:
            found[forms(kind)] = (kind, None, None)
            continue
        for pair in itertools.product(COLOURS, SHAPES):
            found[forms(kind).format(object=phrase(pair))] = (kind, *pair)
    return found


def canonical() -> dict[str, tuple[str, str | None, str | None]]:
    """The canonical sentence of every possible event, and the (kind, colour, shape) it names."""
    return every(lambda kind: TEMPLATES[kind][0], object_phrase)


UNSEEN_WORDINGS = min(len(forms) for forms in UNSEEN_TEMPLATES.values())


def unseen(choice: int) -> dict[str, tuple[str, str | None, str | None]]:
    """Like `canonical` in words of no caption of training; wording number `choice`."""
    return every(
        lambda kind: UNSEEN_TEMPLATES[kind][choice],
        lambda pair: object_phrase((SYNONYMS[pair[0]], SYNONYMS[pair[1]])),
    )


def name_event(text: str) -> tuple[str | None, str | None, str | None]:
    """The (kind, colour, shape) that a sentence names; None for what it does not name."""
    words = text.lower()
    found = re.findall(r"[a-z]+", words)
    colour = next((word for word in found if word in COLOURS), None)
    shape = next((word for word in found if word in SHAPES), None)
    kind = next((kind for kind, pattern in _CUE_PATTERNS if pattern.search(words)), None)
    return kind, colour, shape


@dataclass(frozen=True)
class Situation:
    """What is true at one time; O objects."""

    objects: Sequence[tuple[str, str]]  # (colour, shape)
    uv: np.ndarray  # float [O, 2], square image, 0..1
    visible: np.ndarray  # bool [O]
    state: np.ndarray  # uint8 [O], the `object_state` flags
    falls_soon: frozenset[int] = frozenset()  # objects that fall off within two seconds

    def having(self, flag: int) -> list[int]:
        return [i for i, bits in enumerate(self.state) if bits & flag]

    @property
    def shown(self) -> list[int]:
        """Objects in view that lie on the table or are held."""
        return [
            i for i, bits in enumerate(self.state) if self.visible[i] and bits & (ON_TABLE | HELD)
        ]


QUESTIONS: dict[str, tuple[str, ...]] = {
    "event": (DEFAULT_QUERY, "What is going on?", "What happens here?"),
    "moving": ("Which object is moving?", "What is moving?"),
    "colour": ("What colour is the {shape}?", "Which colour does the {shape} have?"),
    "count": ("How many objects are on the table?", "How many things are on the table?"),
    "exists": ("Is there a {colour} {shape}?", "Can you see a {colour} {shape}?"),
    "where": ("Where is the {colour} {shape}?", "Where can I find the {colour} {shape}?"),
    "holding": ("What is the gripper holding?", "What does the gripper hold?"),
    "is_holding": ("Is the gripper holding something?", "Does the gripper hold anything?"),
    "posture": ("Is the {colour} {shape} standing or lying?",),
    "scene": ("What is on the table?", "Describe the scene."),
    "will": ("Will the {colour} {shape} fall off the table?",),
}
ANSWERS: dict[str, tuple[str, ...]] = {  # all the answers of the closed question types
    "colour": COLOURS,
    "count": _NUMBERS,
    "exists": ("yes", "no"),
    "is_holding": ("yes", "no"),
    "posture": ("standing", "lying"),
    "will": ("yes", "no"),
    "where": (
        *(f"{depth} {side}" for depth in ("far", "near") for side in ("left", "middle", "right")),
        "in the gripper",
    ),
    "moving": ("no object", *(f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES)),
    "holding": ("nothing", *(f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES)),
}


def place(uv: np.ndarray) -> str:
    """Where a point of the image is, e.g. "near left"."""
    side = ("left", "middle", "right")[int(np.clip(3 * uv[0], 0, 2))]
    return f"{'far' if uv[1] < 0.5 else 'near'} {side}"


def scene(now: Situation) -> str:
    """The objects in view from left to right, e.g. "a red cube and an orange ball"."""
    ordered = sorted(now.shown, key=lambda i: float(now.uv[i, 0]))
    names = []
    for index in ordered:
        colour, shape = now.objects[index]
        names.append(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}")
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _absent(now: Situation, rng: np.random.Generator) -> tuple[str, str]:
    """A (colour, shape) that is not there; half the time one word of it is."""
    taken = set(now.objects)
    while True:
        colour, shape = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
        if now.shown and rng.random() < 0.5:
            known = now.objects[int(rng.choice(now.shown))]
            colour, shape = (known[0], shape) if rng.random() < 0.5 else (colour, known[1])
        if (colour, shape) not in taken:
            return colour, shape


def _object_questions(now: Situation, rng: np.random.Generator) -> list[tuple[str, str, str, str]]:
    """(type, answer, colour, shape) of the questions about one object."""
    found = []
    if now.shown:
        index = int(rng.choice(now.shown))
        colour, shape = now.objects[index]
        if sum(now.objects[i][1] == shape for i in now.shown) == 1:
            found.append(("colour", colour, colour, shape))
        held = bool(now.state[index] & HELD)
        found.append(("where", "in the gripper" if held else place(now.uv[index]), colour, shape))
        if shape in ("can", "bottle", "mug") and not held:
            upright = bool(now.state[index] & UPRIGHT)
            found.append(("posture", "standing" if upright else "lying", colour, shape))
    for index in now.having(MOVING):
        if index in now.shown and not now.state[index] & (HELD | FALLEN):
            colour, shape = now.objects[index]
            found.append(("will", "yes" if index in now.falls_soon else "no", colour, shape))
            break
    if now.shown and rng.random() < 0.5:
        pair = now.objects[int(rng.choice(now.shown))]
        found.append(("exists", "yes", *pair))
    else:
        found.append(("exists", "no", *_absent(now, rng)))
    return found


def questions(now: Situation, event: Event, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(question, answer, type) triples for a situation; the first is "What is happening?"."""
    asked = [("event", describe(event, now.objects, rng), "", "")]
    moving = [i for i in now.having(MOVING) if i in now.shown]
    if len(moving) < 2:
        answer = object_phrase(now.objects[moving[0]]) if moving else "no object"
        asked.append(("moving", answer, "", ""))
    on_table = [i for i in now.having(ON_TABLE) if now.visible[i]]
    asked.append(("count", _NUMBERS[len(on_table)], "", ""))
    held = now.having(HELD)
    asked.append(("holding", object_phrase(now.objects[held[0]]) if held else "nothing", "", ""))
    asked.append(("is_holding", "yes" if held else "no", "", ""))
    asked.append(("scene", scene(now), "", ""))
    asked += _object_questions(now, rng)
    triples = []
    for kind, answer, colour, shape in asked:
        forms = QUESTIONS[kind]
        form = forms[0] if kind == "event" else forms[int(rng.integers(len(forms)))]
        triples.append((form.format(colour=colour, shape=shape), answer, kind))
    return triples
