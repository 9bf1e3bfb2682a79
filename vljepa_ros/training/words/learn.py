"""The Y-encoder of a finished model learns more words, and the rest of the model stays as it is.

Invariant: the embeddings that the canonical texts had before are what all other texts are drawn
to, so what the predictor was trained to say still means the same.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.config import CONFIG
from vljepa_ros.model.networks import VLJepa, YEncoder
from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.vocabulary import COLOURS, SHAPES

from ..base import BASE, RECIPE, Base
from ..loop import finished, fit, make_trainer, save, seed_of
from ..stages import TEXT_TEMPERATURE, TEXTS_AT_ONCE, scheduled
from ..texts import sentence_encoder_folder, solve_head, tokens
from .dictionary import WordNet
from .texts import FRAMES, Reader, label_sets

log = logging.getLogger(__name__)
TOGETHER = 24  # texts of about one length, for which no padding is computed
KINDS_ALIKE = 3
KEPT_TEXTS = 300  # beside all canonical ones and all answers
KEEPING_WEIGHS = 4.0
READ = (
    "what WordNet 3.0 (Princeton University) has under the table's words, each by itself, in which "
    "some words of the evaluation's unseen synonyms stand (crimson, under red)"
)
STAGE = "words"  # the folder of what is trained, beside the finished model
FITTED_CAPTIONS, FITTED_ENTRIES = 3000, 1200
# Each, against a caption in other words. A watch fires above a cosine with a canonical text, and
# with 20 for those a tenth of them fired late.
ANSWERS_WEIGH, CANONICAL_WEIGHS, USUAL_WEIGHS, ENTRIES_WEIGH = 10_000.0, 3000.0, 20.0, 0.3
RIDGE = 3e-2


@dataclass(frozen=True)
class WordRecipe:
    """How long the Y-encoder learns words, and from how many texts of which sort a step."""

    steps: int = 160
    rate: float = 7e-5
    captions: int = 32
    alike: int = 24  # captions in one way of saying things: each other's hardest negatives
    entries: int = 8  # of the dictionary
    kept: int = 12  # texts that shall stay where they are
    seed: int = 0


def learn_words(
    base: Base, folder: Path, out: Path, recipe: WordRecipe, say: Callable[[str], None] = log.info
) -> Path:
    """Teach the Y-encoder of `base` the words of the WordNet in `folder`; returns `out`.

    `out` becomes the folder of a finished training: the model of `base`, its Y-encoder but for the
    table of words trained further. An interrupted one goes on. Raises VLJepaError where there is no
    WordNet, and where the model is not the table's or has another sentence encoder.
    """
    lightning.seed_everything(recipe.seed, verbose=False)
    reader, ours = Reader(WordNet(folder).entries()), sentence_encoder_folder() / "tokenizer.json"
    if base.y_tokenizer.read_bytes() != ours.read_bytes():
        raise VLJepaError(
            f"{base.about['from']} cannot learn words so: that takes all-MiniLM-L6-v2 as sentence "
            "encoder, tuned on the simulated table; start from `tabletop`."
        )
    _begin(base, out, recipe)
    model, words = base.model, TextTokenizer(ours, base.model.config.text_length)
    stage = WordStage(model.y_encoder, words, recipe)
    say(f"before: {stage.judged()}")
    if not finished(model, out):
        usual = stage.usual(reader)
        _train(model, stage, reader, usual, out / STAGE)
        stage.fit_head(reader, usual)
        save(model, out)
    say(f"after: {stage.judged()}")
    return out


def _train(
    model: VLJepa, stage: WordStage, reader: Reader, usual: Mapping[str, Tensor], folder: Path
) -> None:
    if finished(model, folder):
        return
    recipe = stage.recipe
    readings = Readings(reader, usual, recipe, seed_of(recipe.seed, folder))
    fit(make_trainer(folder, recipe.steps), stage, DataLoader(readings, batch_size=None), folder)
    save(model, folder)


def _begin(base: Base, out: Path, recipe: WordRecipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    said = {
        **asdict(recipe), "from": base.about["from"], "read": READ,
        "before": base.about.get("source", {}).get("recipe"),
    }  # fmt: skip
    text = json.dumps(said, indent=2) + "\n"
    if (out / RECIPE).is_file() and json.loads((out / RECIPE).read_text()) != said:
        raise VLJepaError(
            f"{out} holds another training; give another folder, or the same --from, --words, "
            "--steps and --seed as before."
        )
    (out / RECIPE).write_text(text)
    if base.bundle is not None:
        about = {"from": base.about["from"], "bundle": str(base.bundle)}
        (out / STAGE).mkdir(exist_ok=True)
        (out / STAGE / BASE).write_text(json.dumps(about, indent=2) + "\n")
    shutil.copyfile(base.tokenizer, out / "tokenizer.json")
    base.model.config.to_json_file(str(out / CONFIG), use_diff=False)


class WordStage(lightning.LightningModule):
    """A Y-encoder on batches of `Readings`.

    Four losses: a caption is nearest to the place of its meaning among all, and that place nearest
    to it among the captions of the batch; a caption lies at the place of its meaning, and usual
    texts where they were; a dictionary's entry is nearest to the table's word that it stands under.
    """

    places: Tensor

    def __init__(self, y_encoder: YEncoder, words: TextTokenizer, recipe: WordRecipe):
        super().__init__()
        self.y_encoder, self.words, self.recipe = y_encoder, words, recipe
        y_encoder.requires_grad_(True)
        y_encoder.model.get_input_embeddings().requires_grad_(False)
        if (pooler := getattr(y_encoder.model, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # the mean is over the hidden states
        self.meanings = list(dict.fromkeys(language.meanings()))
        self.row = {meaning: row for row, meaning in enumerate(self.meanings)}
        self.register_buffer("places", self.embedded(self.meanings))
        self.groups: dict[str, tuple[int, int]] = {}
        for number, group in enumerate(self._groups()):
            self.register_buffer(f"group{number}", torch.stack(list(group.values())))
            self.groups |= {name: (number, row) for row, name in enumerate(group)}

    def _groups(self) -> list[dict[str, Tensor]]:
        """Of colours, shapes and kinds: in the middle of which texts each one's place is."""
        kinds: dict[str, list[str]] = {kind: [] for kind in FRAMES}
        for text, (kind, _, _) in language.canonical().items():
            if kind in FRAMES:
                kinds[str(kind)].append(text)
        shapes = {
            shape: [language.object_phrase((colour, shape)) for colour in COLOURS]
            for shape in SHAPES
        }
        texts = ({colour: [colour] for colour in COLOURS}, shapes, kinds)
        return [
            {
                name: F.normalize(self.places[[self.row[text] for text in mine]].mean(0), dim=-1)
                for name, mine in group.items()
            }
            for group in texts
        ]

    @torch.no_grad()
    def embedded(self, texts: list[str]) -> Tensor:
        """Embeddings `[N, D]` of texts."""
        return self._made(texts, TEXTS_AT_ONCE)

    def _made(
        self,
        texts: list[str],
        together: int = TOGETHER,
        encode: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        encode = encode or self.y_encoder
        device = self.y_encoder.projector.weight.device
        ids, mask = (part.to(device) for part in tokens(self.words, texts))
        order, parts = mask.sum(1).argsort(stable=True), []
        for rows in order.split(together):
            longest = int(mask[rows].sum(1).max())
            parts.append(encode(ids[rows, :longest], mask[rows, :longest]))
        return torch.cat(parts)[order.argsort()]

    def usual(self, reader: Reader) -> dict[str, Tensor]:
        """Texts in the words of training and where they lie, which shall not change."""
        rng = np.random.default_rng(self.recipe.seed)
        known = dict(zip(self.meanings, self.places, strict=True))
        more = {reader.usual(rng): None for _ in range(KEPT_TEXTS)}
        texts = [text for text in more if text not in known]
        return {**known, **dict(zip(texts, self.embedded(texts), strict=True))}

    @torch.no_grad()
    def fit_head(self, reader: Reader, usual: Mapping[str, Tensor]) -> None:
        """Fit the head in closed form, so that usual texts lie where they lay, and others there.

        The contrast of the training moves what it does not name; this brings it back.
        """
        rng = np.random.default_rng(self.recipe.seed)
        texts, wanted = list(usual), list(usual.values())
        canonical = set(language.canonical())
        held = dict.fromkeys(self.meanings, ANSWERS_WEIGH)  # few, and a question hangs on each
        held |= dict.fromkeys(canonical, CANONICAL_WEIGHS)
        weights = [held.get(text, USUAL_WEIGHS) for text in texts]
        for text, meaning in dict(reader.draw(rng) for _ in range(FITTED_CAPTIONS)).items():
            texts.append(text)
            wanted.append(self.places[self.row[meaning]])
            weights.append(1.0)
        for text, word in dict(reader.entry(rng) for _ in range(FITTED_ENTRIES)).items():
            number, row = self.groups[word]
            texts.append(text)
            wanted.append(getattr(self, f"group{number}")[row])
            weights.append(ENTRIES_WEIGH)
        vectors = self._made(texts, TEXTS_AT_ONCE, self.y_encoder.sentence)
        solve_head(
            self.y_encoder.projector, vectors.double(), torch.stack(wanted).double(),
            torch.tensor(weights).double(), RIDGE,
        )  # fmt: skip

    def judged(self) -> str:
        """How well other words are understood that no caption holds, with a perfect predictor."""
        right = []
        names = list(language.canonical().values())
        places = self.places[[self.row[text] for text in language.canonical()]]
        for labels in label_sets():
            said = list(labels.values())
            nearest = (places @ self.embedded(list(labels)).T).argmax(1).tolist()
            found = [said[i] for i in nearest]
            kind = np.mean([a[0] == b[0] for a, b in zip(names, found, strict=True)])
            thing = np.mean([a[1:] == b[1:] for a, b in zip(names, found, strict=True) if a[1]])
            right.append((kind, thing))
        kind, thing = np.mean(right, axis=0)
        moved = (self.embedded(self.meanings[::4]) * self.places[::4]).sum(1)
        return (
            f"kind {kind:.3f}, object {thing:.3f} in other words; the usual texts lie at cosine "
            f"{moved.mean():.4f} (least {moved.min():.4f}) to where they lay"
        )

    def training_step(self, batch: Mapping[str, Any], _index: int) -> Tensor:
        """The loss of a batch of `Readings`."""
        said = self.losses(batch)
        self.log_dict(said, prog_bar=True, batch_size=len(batch["captions"]))
        return said["captions"] + said["places"] + said["entries"]

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch, weighed, by their names."""
        texts = [*batch["captions"], *batch["entries"], *batch["kept"]]
        sizes = [len(batch[name]) for name in ("captions", "entries", "kept")]
        captions, entries, kept = self._made(texts).split(sizes)
        rows = torch.tensor([self.row[m] for m in batch["meanings"]], device=self.device)
        still = [(captions, self.places[rows]), (kept, batch["kept_places"].to(kept))]
        return {
            "captions": self._captions(captions, rows),
            "places": KEEPING_WEIGHS * sum((1 - (a * b).sum(1)).mean() for a, b in still),
            "entries": self._entries(entries, batch["meant"]),
        }

    def _captions(self, made: Tensor, rows: Tensor) -> Tensor:
        loss = F.cross_entropy(made @ self.places.T / TEXT_TEMPERATURE, rows)
        mixed = len(rows) - self.recipe.alike
        for part in (slice(0, mixed), slice(mixed, None)):
            scores = self.places[rows[part]] @ made[part].T / TEXT_TEMPERATURE
            others = rows[part][:, None] != rows[part][None]
            own = scores.masked_fill(others, float("-inf"))  # any text of the meaning will do
            loss = loss + (scores.logsumexp(1) - own.logsumexp(1)).mean()
        return loss

    def _entries(self, made: Tensor, meant: list[str]) -> Tensor:
        losses = []
        for text, word in zip(made, meant, strict=True):
            number, row = self.groups[word]
            scores = getattr(self, f"group{number}") @ text / TEXT_TEMPERATURE
            losses.append(F.cross_entropy(scores, scores.new_tensor(row, dtype=torch.long)))
        return torch.stack(losses).mean()

    def configure_optimizers(self) -> Any:
        return scheduled(self, self.recipe.rate, self.recipe.steps)


class Readings(IterableDataset):
    """Endless batches of texts with what they mean."""

    def __init__(
        self, reader: Reader, usual: Mapping[str, Tensor], recipe: WordRecipe, seed: int
    ):  # fmt: skip
        self.reader, self.usual, self.recipe, self.seed = reader, usual, recipe, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng, recipe, usual = np.random.default_rng(self.seed), self.recipe, list(self.usual)
        while True:
            captions = [self.reader.draw(rng) for _ in range(recipe.captions)]
            captions += self.reader.alike(recipe.alike, KINDS_ALIKE, rng)
            entries = [self.reader.entry(rng) for _ in range(recipe.entries)]
            kept = [usual[i] for i in rng.integers(len(usual), size=recipe.kept)]
            yield {
                "captions": [text for text, _ in captions],
                "meanings": [meaning for _, meaning in captions],
                "entries": [text for text, _ in entries],
                "meant": [meaning for _, meaning in entries],
                "kept": kept,
                "kept_places": torch.stack([self.usual[text] for text in kept]),
            }
