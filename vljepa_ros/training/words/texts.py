"""What the Y-encoder reads: captions in many words, and entries of a dictionary.

Invariant: no caption holds a word that the evaluation keeps for itself, nor one of the validation.
A dictionary's entries may: they are words by themselves, and no sentences of the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.vocabulary import COLOURS, KINDS, SHAPES
from vljepa_ros.tabletop.wordings import MORE_TEMPLATES, REWORDINGS

VALIDATION_TEMPLATES: dict[str, tuple[str, str]] = {
    "still": ("everything is inactive", "the tabletop slumbers"),
    "reach": ("the grasping device lurches towards {object}", "the prongs inch up to {object}"),
    "pick_up": ("the grasping device hefts {object}", "the prongs yank {object} up"),
    "carry": ("the grasping device totes {object} across",
        "the prongs chauffeur {object} across the table"),
    "put_down": ("the grasping device plants {object} on the table", "the prongs park {object}"),
    "drop": ("the grasping device botches holding {object}", "the prongs let {object} crash down"),
    "push": ("the grasping device bulldozes {object}", "the prongs budge {object}"),
    "tip_over": ("{object} loses its balance", "{object} wobbles and ends up lying"),
    "roll": ("{object} spirals along", "{object} pinwheels away"),
    "slide": ("{object} aquaplanes over the table", "{object} toboggans across"),
    "fall_off": ("{object} cascades off the table", "{object} crash-lands beneath the table"),
    "retreat": ("the grasping device scurries off", "the prongs scuttle away"),
    "hand": ("somebody's paw flits by", "a man's knuckles dart through the picture"),
    "cover": ("somebody's paw smothers {object}", "a man's knuckles obstruct {object}"),
    "uncover": ("somebody's paw lets {object} be seen again",
        "a man's knuckles lay {object} bare"),
}  # fmt: skip
VALIDATION_WORDS: dict[str, tuple[str, str]] = {
    "red": ("cerise", "ruddy"), "green": ("olive", "spinach-coloured"),
    "blue": ("aqua", "lazuline"), "yellow": ("canary", "gamboge"),
    "orange": ("terracotta", "butternut"), "purple": ("heliotrope", "prune-coloured"),
    "white": ("chalk", "hoary"), "black": ("jet", "tarry"), "cube": ("square", "casket"),
    "ball": ("softball", "bauble"), "can": ("caddy", "oilcan"), "bottle": ("jug", "amphora"),
    "mug": ("pint pot", "pannikin"), "book": ("scrapbook", "pamphlet"),
}  # fmt: skip
"""Words to see by whether a training goes well, as the evaluation's are looked at last."""

_BY_GRIPPER = ("reach", "pick_up", "carry", "put_down", "drop", "push")
_BY_ITSELF = ("tip_over", "roll", "slide")
FRAMES: dict[str, str] = {
    **dict.fromkeys(_BY_GRIPPER, "the gripper {verb} {object}"),
    **dict.fromkeys(_BY_ITSELF, "{object} {verb}"),
    "fall_off": "{object} {verb} off the table",
    "retreat": "the gripper {verb}",
    "cover": "a hand {verb} {object}",
    "uncover": "the hand {verb} {object}",
}
"""A caption for a verb of a dictionary, in the third person."""


REWORDED = 0.75  # of the words that have others
FROM_VERBS = 0.25  # of the captions of a kind for which the dictionary has verbs
_WORD = re.compile(r"[a-z]+")


def label_sets() -> Iterator[Mapping[str, tuple[str, str | None, str | None]]]:
    """Like `language.unseen`, in the words of the validation."""
    for way in range(2):

        def phrase(pair: tuple[str, str], way: int = way) -> str:
            return language.object_phrase(
                (VALIDATION_WORDS[pair[0]][way], VALIDATION_WORDS[pair[1]][way])
            )

        def form(kind: str, way: int = way) -> str:
            return VALIDATION_TEMPLATES[kind][way]

        yield language.every(form, phrase)


def reserved() -> set[str]:
    """The stems of the words that captions leave to the evaluation and to the validation."""
    usual = _stems_of(*language.TEMPLATES.values(), *MORE_TEMPLATES.values(), *REWORDINGS.values())
    telling = _stems_of(*language.UNSEEN_TEMPLATES.values(), *VALIDATION_TEMPLATES.values())
    others = _stems_of(tuple(language.SYNONYMS.values()))
    return (telling | _stems_of(*VALIDATION_WORDS.values())) - usual | others


def _stems_of(*texts: Iterable[str]) -> set[str]:
    return {stem for some in texts for text in some for stem in stems(text)}


def stems(text: str) -> list[str]:
    """The words of a text without their endings: "hauls" and "haul", "ferries" and "ferry"."""
    return [_stem(word) for word in re.findall(r"[a-z]+", text.lower())]


def _stem(word: str) -> str:
    for ending, instead in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", "e"),
                            ("s", "")):  # fmt: skip
        if word.endswith(ending) and len(word) > len(ending) + 2:
            word = word.removesuffix(ending) + instead
            break
    return word.removesuffix("e")


def third_person(verb: str) -> str:
    """A verb as it stands after "it": "lift up" gives "lifts up"."""
    first, _, rest = verb.partition(" ")
    if re.search(r"(s|x|z|ch|sh|o)$", first):
        first += "es"
    elif re.search(r"[^aeiou]y$", first):
        first = first[:-1] + "ies"
    else:
        first += "s"
    return f"{first} {rest}".strip()


def _pair(rng: np.random.Generator) -> tuple[str, str]:
    return str(rng.choice(COLOURS)), str(rng.choice(SHAPES))


def _canonical(kind: str, pair: tuple[str, str]) -> str:
    return language.TEMPLATES[kind][0].format(object=language.object_phrase(pair))


@dataclass(frozen=True)
class Reader:
    """Texts in the words of training and of a dictionary's `entries` (of `WordNet.entries`)."""

    entries: Mapping[str, tuple[str, ...]]
    templates: dict[str, tuple[str, ...]] = field(init=False)
    made: dict[str, tuple[str, ...]] = field(init=False)
    words: dict[str, tuple[str, ...]] = field(init=False)
    meanings: tuple[str, ...] = tuple(language.meanings())

    def __post_init__(self) -> None:
        kept = reserved()

        def free(texts: Iterable[str]) -> tuple[str, ...]:
            return tuple(text for text in dict.fromkeys(texts) if not kept & set(stems(text)))

        templates = {
            kind: free((*language.TEMPLATES[kind], *MORE_TEMPLATES[kind])) for kind in KINDS
        }
        made = {
            kind: free(
                frame.replace("{verb}", third_person(verb)) for verb in self.entries.get(kind, ())
            )
            for kind, frame in FRAMES.items()
        }
        words = {
            word: free((*others, *self.entries.get(word, ())))
            for word, others in REWORDINGS.items()
        }
        for name, value in (("templates", templates), ("made", made), ("words", words)):
            object.__setattr__(self, name, value)

    def _form(self, kind: str, rng: np.random.Generator) -> str:
        made = self.made.get(kind, ())
        return str(rng.choice(made if made and rng.random() < FROM_VERBS else self.templates[kind]))

    def reworded(self, text: str, rng: np.random.Generator) -> str:
        """A text with most of its words of the table in other words."""

        def other(found: re.Match[str]) -> str:
            words = self.words.get(found[0], ())
            return str(rng.choice(words)) if words and rng.random() < REWORDED else found[0]

        return _WORD.sub(other, text)

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        """A caption, a name or an answer in other words, and its canonical meaning."""
        chance = rng.random()
        if chance < 0.15:
            said = self.meanings[int(rng.integers(len(self.meanings)))]
            return said, said
        pair = _pair(rng)
        if chance < 0.3:
            return self.reworded(language.object_phrase(pair), rng), language.object_phrase(pair)
        if chance < 0.35:
            return self.reworded(pair[0], rng), pair[0]
        kind = str(rng.choice(KINDS))
        said = self._form(kind, rng).format(object=language.object_phrase(pair))
        return self.reworded(said, rng), _canonical(kind, pair)

    def alike(self, count: int, kinds: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Captions and meanings of `count` events of `kinds` kinds, all in one way of saying it."""
        style = {word: str(rng.choice((*others, word))) for word, others in self.words.items()}

        def styled(text: str) -> str:
            return _WORD.sub(lambda found: style.get(found[0], found[0]), text)

        forms = {str(kind): self._form(str(kind), rng) for kind in rng.choice(KINDS, kinds, False)}
        drawn = []
        for _ in range(count):
            kind, pair = str(rng.choice(list(forms))), _pair(rng)
            said = forms[kind].format(object=language.object_phrase(pair))
            drawn.append((styled(said), _canonical(kind, pair)))
        return drawn

    def usual(self, rng: np.random.Generator) -> str:
        """A description of what is on the table, or a caption, in the words of training."""
        if rng.random() < 0.5:
            pair = _pair(rng)
            form = str(rng.choice(language.TEMPLATES[str(rng.choice(KINDS))]))
            return form.format(object=language.object_phrase(pair))
        names = [f"a {' '.join(_pair(rng))}" for _ in range(rng.integers(2, 5))]
        return f"{', '.join(names[:-1])} and {names[-1]}"

    def entry(self, rng: np.random.Generator) -> tuple[str, str]:
        """A word of the dictionary by itself, and the table's word that it stands under."""
        group = (COLOURS, SHAPES, tuple(FRAMES))[int(rng.integers(3))]
        meant = str(rng.choice([word for word in group if self.entries.get(word)]))
        word = str(rng.choice(self.entries[meant]))
        if meant in COLOURS:
            forms = ("{}", "something {}", "the colour {}", "it is {}")
        elif meant in SHAPES:
            forms = ("{}", "a {}", "the {}", "some {}")
        else:
            word, forms = third_person(word), ("{}", "it {}", "something {}", "somebody {} it")
        return str(rng.choice(forms)).format(word), meant
