"""A bank of phrases: a text file, its embeddings, and the phrase that fits an embedding best.

Invariant: what is found depends on the file and the model alone, whether the embeddings were made
now or come from the disk: both are rounded to half precision.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vljepa_ros.bundle.spec import PhrasesSpec
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import TEXT_PIECE, Runtime
from vljepa_ros.perception.texts import MOST_CHARACTERS, QuestionError, checked_text

from .speaker import Said

log = logging.getLogger(__name__)

LARGEST = 1 << 28  # bytes of a file
NEXT = 64  # best phrases that are looked at first for one that means something else


class PhrasesError(VLJepaError):
    """A bank of phrases cannot be used."""


@dataclass(frozen=True)
class PhraseFile:
    """The phrases of a file, each once, and the sha256 of its bytes, in hex."""

    path: Path
    phrases: tuple[str, ...]
    sha256: str


def read_phrases(path: Path) -> PhraseFile:
    """A file of phrases: UTF-8, one a line; empty lines and lines that begin with # are none.

    Raises PhrasesError, which names file and line.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise PhrasesError(f"The phrases {path} cannot be read: {error.strerror}.") from error
    if len(content) > LARGEST:
        raise PhrasesError(f"{path} has more than {LARGEST >> 20} MiB; it is no file of phrases.")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PhrasesError(f"{path} is not UTF-8 (byte {error.start}); convert it.") from error
    phrases: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        plain = " ".join(line.split())
        if not plain or plain.startswith("#"):
            continue
        try:
            if len(plain) > MOST_CHARACTERS or not plain.isprintable():  # which is seldom
                plain = checked_text("phrase", line)
            phrases[plain] = None
        except QuestionError as error:
            raise PhrasesError(f"{path}, line {number}: {error}") from error
    if not phrases:
        raise PhrasesError(f"{path} holds no phrase; write one a line.")
    return PhraseFile(path, tuple(phrases), hashlib.sha256(content).hexdigest())


class Bank:
    """Phrases and their embeddings, float `[N, E]`, of unit length.

    What all phrases of a bank have in common, their mean, says nothing about which one fits. So a
    phrase is judged by what sets it apart: the cosine between an embedding and the phrase's own
    less the mean.
    """

    def __init__(self, phrases: Sequence[str], embeddings: np.ndarray) -> None:
        self.phrases = phrases
        # Side by side, not one after the other: so BLAS reads them at twice the speed. In place, as
        # they may be many.
        apart = np.array(embeddings.T, np.float32, order="C")
        self._mean = apart.mean(1)
        apart -= self._mean[:, None]
        self._lengths = np.maximum(np.sqrt(np.einsum("ij,ij->j", apart, apart)), 1e-6)
        apart /= self._lengths
        self._apart = apart

    def __len__(self) -> int:
        return len(self.phrases)

    def best(self, embedding: np.ndarray, same: float) -> tuple[int, float, float]:
        """The phrase that fits an embedding `[E]` best, the cosine between them, and its margin.

        The margin is by how much the best phrase is judged lower whose cosine to it is below
        `same`; infinite where there is none.
        """
        query = np.asarray(embedding, np.float32)
        fit = query @ self._apart
        best = int(fit.argmax())
        phrase = self.embeddings([best])[0]
        cosine = float(phrase @ query)
        count = min(NEXT, len(fit))
        while True:
            # By argpartition, as sorting 100,000 would take longer than multiplying them.
            among = np.argpartition(fit, -count)[-count:] if count < len(fit) else np.arange(count)
            others = among[self.embeddings(among) @ phrase < same]
            if len(others):
                return best, cosine, float(fit[best] - fit[others].max())
            if count == len(fit):
                return best, cosine, float("inf")
            count = min(16 * count, len(fit))

    def embeddings(self, which: Sequence[int] | np.ndarray) -> np.ndarray:
        """The embeddings, float32 `[M, E]`, of some phrases."""
        chosen = np.asarray(which)
        rows: np.ndarray = self._apart[:, chosen].T * self._lengths[chosen, None] + self._mean
        return rows


class Phrases:
    """Says the phrase of a bank that fits best, where it fits well enough for `spec`."""

    def __init__(self, bank: Bank, spec: PhrasesSpec) -> None:
        self.bank = bank
        self._spec = spec

    def say(self, embedding: np.ndarray) -> Said:
        """The best phrase; its doubt says which threshold it fails."""
        spec = self._spec
        index, cosine, margin = self.bank.best(embedding, spec.same)
        text, doubt = self.bank.phrases[index], ""
        if cosine < spec.cosine:
            doubt = f"'{text}' fits best, with cosine {cosine:.2f}, and {spec.cosine:g} is asked."
        elif margin < spec.margin:
            doubt = (
                f"'{text}' fits best, {margin:.3f} before what means something else, and "
                f"{spec.margin:g} is asked."
            )
        return Said(text, cosine, "phrases", doubt)


def folder() -> Path:
    """Where embeddings of phrases lie: $XDG_CACHE_HOME/vljepa/phrases, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vljepa" / "phrases"


def embeddings_of(
    file: PhraseFile, model: Callable[[], Runtime], tell: Callable[[int], None]
) -> Generator[None, None, np.ndarray]:
    """The embeddings of a file's phrases, float16 `[N, E]`: from the disk, else made and kept.

    With a `yield` after each run of the Y-encoder, before which `model()` says what runs it, and
    `tell` hears how many phrases are done. EngineError, or what `model` raises.
    """
    bundle = model().bundle
    name = re.sub(r"[^\w.-]", "-", bundle.model_id)
    kept = folder() / f"{name}-{file.sha256[:16]}.npy"
    shape = (len(file.phrases), bundle.embedding_dim)
    found = _read(kept, shape)
    if found is not None:
        return found
    rows = np.empty(shape, np.float16)
    for k in range(0, len(rows), TEXT_PIECE):
        piece = yield from model().embed_text_in_pieces(file.phrases[k : k + TEXT_PIECE])
        rows[k : k + TEXT_PIECE] = piece
        tell(k + len(piece))
        yield
    _write(kept, rows)
    return rows


def _read(kept: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Embeddings from the disk; None where there are none that are whole."""
    try:
        rows: np.ndarray = np.load(kept, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s cannot be read (%s); the phrases are embedded anew.", kept, error)
        return None
    whole = rows.shape == shape and rows.dtype == np.float16 and bool(np.isfinite(rows).all())
    if not whole:
        log.warning("%s does not hold what it should; the phrases are embedded anew.", kept)
    return rows if whole else None


def _write(kept: Path, rows: np.ndarray) -> None:
    """Keep embeddings on the disk, in one step."""
    temporary = ""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as stream:
            temporary = stream.name
            np.save(stream, rows, allow_pickle=False)
        os.replace(temporary, kept)
    except OSError as error:
        log.warning("The embeddings of phrases cannot be kept in %s: %s.", kept.parent, error)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
