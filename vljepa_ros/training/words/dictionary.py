"""What WordNet says of the table's words: their synonyms, and what is a kind of them.

Invariant: which entries are read follows from the table's own words and WordNet alone, never from
the words that the evaluation keeps for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vljepa_ros.errors import VLJepaError

NOUN, VERB = "noun", "verb"
DEPTH = {NOUN: 8, VERB: 1}  # steps down to narrower words; verbs soon mean something else
BROAD = 40  # a verb with more narrower ones says too little: then only its synonyms are read
FEWEST, LONGEST = 3, 24  # letters of a word

Sense = tuple[str, str, int]  # part of speech, word, number of the sense in WordNet 3.0

SENSES: dict[str, tuple[Sense, ...]] = {
    "red": ((NOUN, "red", 1),),
    "green": ((NOUN, "green", 1),),
    "blue": ((NOUN, "blue", 1),),
    "yellow": ((NOUN, "yellow", 1),),
    "orange": ((NOUN, "orange", 2),),
    "purple": ((NOUN, "purple", 1),),
    "white": ((NOUN, "white", 2),),
    "black": ((NOUN, "black", 1),),
    "cube": ((NOUN, "cube", 1), (NOUN, "cube", 2), (NOUN, "cube", 5)),
    "ball": ((NOUN, "ball", 1), (NOUN, "ball", 3), (NOUN, "ball", 6)),
    "can": ((NOUN, "can", 1),),
    "bottle": ((NOUN, "bottle", 1),),
    "mug": ((NOUN, "mug", 4),),
    "book": ((NOUN, "book", 2),),
    "reach": ((VERB, "reach", 3), (VERB, "approach", 1)),
    "pick_up": ((VERB, "pick_up", 1), (VERB, "pick_up", 2), (VERB, "lift", 1), (VERB, "lift", 8),
        (VERB, "grasp", 1)),
    "carry": ((VERB, "carry", 1), (VERB, "transport", 1)),
    "put_down": ((VERB, "put_down", 1), (VERB, "put_down", 2), (VERB, "put", 1),
        (VERB, "lower", 1)),
    "drop": ((VERB, "drop", 1), (VERB, "let_go", 1)),
    "push": ((VERB, "push", 1), (VERB, "push", 5), (VERB, "shove", 2), (VERB, "nudge", 1)),
    "tip_over": ((VERB, "tip_over", 2), (VERB, "topple", 1), (VERB, "fall_over", 1)),
    "roll": ((VERB, "roll", 1), (VERB, "roll", 2)),
    "slide": ((VERB, "slide", 1), (VERB, "slide", 2), (VERB, "slide", 3)),
    "fall_off": ((VERB, "fall", 1), (VERB, "drop", 2)),
    "retreat": ((VERB, "retreat", 1), (VERB, "withdraw", 3), (VERB, "back_off", 1)),
    "cover": ((VERB, "cover", 2), (VERB, "hide", 1), (VERB, "hide", 4)),
    "uncover": ((VERB, "uncover", 1),),
}  # fmt: skip
"""The senses of the words of colours, shapes and kinds of event that are meant on the table."""


@dataclass(frozen=True)
class Synset:
    """Words for one thing, and where in the file the narrower ones stand."""

    words: tuple[str, ...]
    narrower: tuple[int, ...]


class WordNet:
    """WordNet 3.0's nouns and verbs, read from its own files (`data.noun`, `index.noun`, …).

    Raises VLJepaError where `folder` does not hold them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.synsets: dict[str, dict[int, Synset]] = {}
        self.senses: dict[str, dict[str, tuple[int, ...]]] = {}
        try:
            for part in (NOUN, VERB):
                self.synsets[part] = dict(_synsets(folder / f"data.{part}"))
                self.senses[part] = dict(_senses(folder / f"index.{part}"))
        except OSError as error:
            raise VLJepaError(
                f"{folder} does not hold WordNet ({error.strerror}: {error.filename}): "
                "`sudo apt-get install wordnet-base`, or give the folder of its files."
            ) from error
        except (ValueError, IndexError) as error:
            raise VLJepaError(
                f"{folder} holds no WordNet 3.0 that can be read ({error}): give the folder of "
                "Debian's package wordnet-base, /usr/share/wordnet."
            ) from error

    def under(self, sense: Sense) -> set[str]:
        """The words of a sense and of what is a kind of it, as they are spelt but in lower case.

        Raises VLJepaError where this WordNet does not have it.
        """
        part, word, number = sense
        try:
            reached = edge = {self.senses[part][word][number - 1]}
            for _ in range(DEPTH[part]):
                below = [self.synsets[part][place].narrower for place in edge]
                edge = {n for one in below if part == NOUN or len(one) <= BROAD for n in one}
                edge -= reached
                reached = reached | edge
            return {word.lower() for place in reached for word in self.synsets[part][place].words}
        except LookupError as error:
            raise VLJepaError(
                f"{self.folder} lacks sense {number} of the {part} {word!r}, or what is said "
                f"there ({error}): it is not WordNet 3.0 as Debian's package wordnet-base has it."
            ) from error

    def entries(self) -> dict[str, tuple[str, ...]]:
        """Of each word of the table its others; what would be said of two of them is left out."""
        found = {
            meant: {word for sense in senses for word in self.under(sense)}
            for meant, senses in SENSES.items()
        }
        own = {word.replace("_", " ") for senses in SENSES.values() for _, word, _ in senses}
        count = Counter(word for words in found.values() for word in words)
        return {
            meant: tuple(sorted(
                word for word in words - own
                if count[word] == 1 and FEWEST <= len(word) <= LONGEST
            ))
            for meant, words in found.items()
        }  # fmt: skip


def _synsets(path: Path) -> Iterator[tuple[int, Synset]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence
                continue
            parts = line.partition(" | ")[0].split()
            count = int(parts[3], 16)
            words = tuple(parts[4 + 2 * i].replace("_", " ") for i in range(count))
            start = 5 + 2 * count
            pointers = [
                parts[start + 4 * i : start + 4 * i + 4] for i in range(int(parts[start - 1]))
            ]
            narrower = tuple(int(place) for sign, place, *_ in pointers if sign == "~")
            yield int(parts[0]), Synset(words, narrower)


def _senses(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith(" "):
                parts = line.split()
                yield parts[0], tuple(int(place) for place in parts[-int(parts[2]) :])
