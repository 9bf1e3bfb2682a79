"""Which bank of phrases is whose: one for all cameras, others for cameras that are named.

Invariant: until every bank of a new choice is embedded, those of the last choice answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vljepa_ros.bundle.locate import shipped_phrases
from vljepa_ros.bundle.spec import Bundle, PhrasesSpec
from vljepa_ros.errors import counted
from vljepa_ros.inference.runtime import Runtime

from .bank import Bank, PhraseFile, Phrases, embeddings_of, read_phrases
from .speaker import Speaker, YDecoder

ALL = ""  # in the place of a camera's name
SAID = 0.1  # of the phrases of a choice, between two lines of the log
_CAMERA = re.compile(r"([A-Za-z]\w*)=(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """The files of phrases by camera (`ALL`: of those that are not named), and how sure to be."""

    files: dict[str, list[PhraseFile]]
    spec: PhrasesSpec | None

    @property
    def phrases(self) -> int:
        """How many there are, in all files."""
        return sum(len(file.phrases) for file in self._each())

    def _each(self) -> list[PhraseFile]:
        return list({file.sha256: file for some in self.files.values() for file in some}.values())


def choose(entries: Sequence[str], bundle: Bundle) -> Choice | None:
    """The banks that the parameter `phrases` names, read; the bundle's own where it names none.

    An entry is a file, or the name of a shipped bank, for all cameras, or `CAMERA=` and such for
    one. Cameras without one have the bundle's. None where there is no phrase at all. Raises
    PhrasesError or BundleError where there is no such file, or it cannot be read.
    """
    files: dict[str, list[PhraseFile]] = {}
    for entry in entries:
        if not entry.strip():
            continue
        named = _CAMERA.fullmatch(entry.strip())
        camera, where = (named[1], named[2]) if named else (ALL, entry.strip())
        files.setdefault(camera, []).append(read_phrases(find_phrases(where)))
    if ALL not in files and bundle.phrases is not None:
        files[ALL] = [read_phrases(bundle.phrases.file)]
    return Choice(files, bundle.phrases) if files else None


def find_phrases(where: str) -> Path:
    """The file of phrases that a path or the name of a shipped bank (`events`) means."""
    path = Path(where).expanduser()
    return path if path.exists() or path.name != where else shipped_phrases(where)


@dataclass
class Banks:
    """The banks that answer now, and those that are being embedded.

    `model` gives the engines that run now, `tell` takes lines for a log.
    """

    model: Callable[[], Runtime]
    tell: Callable[[str], None]
    choice: Choice | None = None  # the last one
    progress: float = 1.0  # of its embedding, 0..1
    problem: str = ""  # why it cannot be embedded, in a sentence
    _ready: dict[str, Phrases] = field(default_factory=dict)

    def speaker(self, camera: str) -> Phrases | None:
        """The bank of a camera; None: there is none, or none yet."""
        return self._ready.get(camera) or self._ready.get(ALL)

    def forget(self) -> None:
        """Have no banks, and make an end of embedding others."""
        self.choice, self._ready, self.progress, self.problem = None, {}, 1.0, ""

    @property
    def ready(self) -> bool:
        """Whether there are banks that answer."""
        return bool(self._ready)

    def prepare(self, choice: Choice | None) -> Generator[None, None, None]:
        """Embed the banks of a choice, in pieces, then have them answer.

        It ends early where another choice has been made since.
        """
        self.progress, self.problem = 1.0, ""
        if choice is None:
            self._ready = {}
            return
        done, said, embedded = 0, 0.0, dict[str, np.ndarray]()

        def tell(count: int) -> None:
            nonlocal said
            self.progress = (done + count) / choice.phrases
            if self.progress - said >= SAID:
                said = self.progress
                self.tell(f"Embedding phrases, {said:.0%} of {choice.phrases:,}.")

        for file in choice._each():
            pieces = embeddings_of(file, self.model, tell)
            while True:
                try:
                    next(pieces)
                except StopIteration as end:
                    embedded[file.sha256] = end.value
                    break
                if self.choice is not choice:
                    return
                yield
            done += len(file.phrases)
        spec = choice.spec or PhrasesSpec(Path())
        self._ready = {
            camera: Phrases(_bank(files, embedded), spec) for camera, files in choice.files.items()
        }
        self.progress = 1.0
        self.tell(f"Ready: {counted(choice.phrases, 'phrase')}.")


def own_speaker(model: Runtime, tell: Callable[[str], None]) -> Speaker | None:
    """Who speaks for a bundle: its Y-decoder, else its phrases, embedded at once; None: nobody."""
    if model.bundle.decoder is not None:
        return YDecoder(model)
    banks = Banks(lambda: model, tell, choose([], model.bundle))
    for _ in banks.prepare(banks.choice):
        pass
    return banks.speaker(ALL)


def _bank(files: Sequence[PhraseFile], embedded: dict[str, np.ndarray]) -> Bank:
    """The phrases of some files as one bank, each phrase once."""
    if len(files) == 1:
        return Bank(files[0].phrases, embedded[files[0].sha256])
    phrases = [phrase for file in files for phrase in file.phrases]
    rows = np.concatenate([embedded[file.sha256] for file in files])
    first = {phrase: k for k, phrase in reversed(list(enumerate(phrases)))}
    keep = sorted(first.values())
    return Bank([phrases[k] for k in keep], rows[keep])
