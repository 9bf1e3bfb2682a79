"""The four stages of training: texts, images, video, decoder.

Invariant: the Y-decoder has no part in the main loss (paper, section 3.2); it is trained on
embeddings that the finished model gives.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F

from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.vocabulary import COLOURS, SHAPES, held_out

from .losses import StateHead, info_nce
from .texts import BEGIN, END, PAD, Sentences, tokens

FURTHER_NEGATIVES = 128
STILLS_SHARE = 0.5  # of the loss on stills, beside that on video
TEACHER_WEIGHS = 8.0  # of a clip's loss: how far its embeddings lie from the teacher's
WARM_UP = 200
TEXTS_AT_ONCE = 128
TEXT_TEMPERATURE = 0.05
DECAY = 0.5  # last part of the steps, in which the learning rate falls to zero


class JointStage(lightning.LightningModule):
    """X-encoder, predictor and the Y-encoder's head on clips (or single tubelets: images).

    The loss is InfoNCE between predicted and text embeddings, with the sentences of all events that
    training may show and texts of the past as further negatives, plus the state loss on the
    X-encoder's visual tokens (none with a `state_weight` of 0: recordings of a real robot have no
    such truth). A `teacher`, a model of the same clips and texts that stays as it is, adds how far
    the predicted embeddings of a clip lie from its own (CLIP-KD, arXiv 2307.12732, section 3.2:
    feature distillation).
    """

    def __init__(
        self, model: VLJepa, query_tokens: TextTokenizer, sentences: Sentences, rate: float,
        steps: int, state_weight: float, teacher: VLJepa | None = None,
    ):  # fmt: skip
        super().__init__()
        self.model, self.query_tokens, self.sentences = model, query_tokens, sentences
        self.teachers = [] if teacher is None else [teacher]  # a list: no weight is kept or trained
        self.rate, self.steps, self.state_weight = rate, steps, state_weight
        # A combination that is never drawn is no negative either: it would be unlearned.
        self.canonical = [
            text for text, (kind, colour, shape) in language.canonical().items()
            if not held_out(colour, shape, kind)
        ]  # fmt: skip
        self.model.requires_grad_(True)  # the stage before froze some of it
        self.model.y_encoder.model.requires_grad_(False)
        if self.model.y_decoder is not None:
            self.model.y_decoder.requires_grad_(False)
        width = model.config.x_encoder_config.hidden_size
        self.state_head = StateHead(width, len(SHAPES), len(COLOURS)) if state_weight else None
        self.log_temperature = torch.nn.Parameter(torch.tensor(0.07).log())

    @property
    def temperature(self) -> Tensor:
        """Learned, never below 0.02."""
        return self.log_temperature.exp().clamp(min=0.02)

    def training_step(self, batch: dict[str, Any], _index: int) -> Tensor:
        """The loss of a batch of clips, or of two: `{"video": …, "stills": …}`."""
        if "video" not in batch:
            return self.loss(batch)
        return self.loss(batch["video"]) + STILLS_SHARE * self.loss(batch["stills"], "stills ")

    def loss(self, batch: dict[str, Any], name: str = "") -> Tensor:
        """The loss of clips; `name` goes before what is logged."""
        visual = self.model.x_encoder(batch["frames"])
        predicted = self.predict(visual, batch["queries"])
        contrast, hits = self.contrast(predicted, batch["answers"], batch["meanings"])
        first, *others = hits.view(len(visual), -1).mean(0)  # of a clip's questions
        said = {"contrast": contrast, "first": first, "temperature": self.temperature}
        if others:
            said["others"] = torch.stack(others).mean()
        loss = contrast
        if self.state_head is not None:
            said["state"] = self.state_head(visual.float(), batch["state"])
            loss = loss + self.state_weight * said["state"]
        if not name:
            for teacher in self.teachers:
                said["apart"] = self.apart(teacher, predicted, batch)
                loss = loss + TEACHER_WEIGHS * said["apart"]
        named = {name + key: value for key, value in said.items()}
        self.log_dict(named, prog_bar=True, batch_size=len(visual))
        return loss

    def apart(self, teacher: VLJepa, predicted: Tensor, batch: dict[str, Any]) -> Tensor:
        """1 - the cosine of what is predicted and what the teacher predicts, the mean."""
        with torch.no_grad():
            visual = teacher.to(predicted.device).x_encoder(batch["frames"])
            taught = self.predict(visual, batch["queries"], teacher)
        return 1 - (predicted * taught).sum(-1).mean()

    def predict(self, visual: Tensor, queries: list[str], model: VLJepa | None = None) -> Tensor:
        """Visual tokens of B clips and B·k queries, clip by clip, to embeddings `[B·k, D]`.

        They are the stage's own model's, or those of `model`, whose visual tokens these are.
        """
        ids, mask = tokens(self.query_tokens, queries)
        longest = int(mask.sum(1).max())  # padding is masked, so leaving it out changes nothing
        ids, mask = ids[:, :longest].to(visual.device), mask[:, :longest].to(visual.device)
        repeated = visual.repeat_interleave(len(queries) // len(visual), dim=0)
        return (model or self.model).predictor.paired(repeated, ids, mask)

    def contrast(
        self, predicted: Tensor, answers: list[str], meanings: list[str]
    ) -> tuple[Tensor, Tensor]:
        """The InfoNCE loss, and for each prediction 1 where the right text was nearest.

        With several devices the predictions and texts of all of them are each other's negatives.
        """
        sentences, device = self.sentences, predicted.device
        rows = sentences.rows(answers, meanings)
        every = sentences.rows(self.canonical, self.canonical)
        further = torch.randint(len(sentences.row), (FURTHER_NEGATIVES,))
        texts = self.model.y_encoder.head(
            sentences.vectors[torch.cat([rows, every, further])].to(device)
        )
        mine = torch.tensor([sentences.meaning(m) for m in meanings], device=device)
        more = sentences.meaning_of_row[torch.cat([every, further])].to(device)
        count = len(predicted)
        everyones = self._gathered(predicted), self._gathered(texts[:count]), self._gathered(mine)
        predictions, written, ids = everyones
        own = slice(self.global_rank * count, (self.global_rank + 1) * count)
        texts, ids = torch.cat([written, texts[count:]]), torch.cat([ids, more])
        loss = info_nce(predictions, texts, ids, self.temperature, own)
        with torch.no_grad():
            nearest = (predicted.float() @ texts.float().T).argmax(1)
            hits = (ids[nearest] == mine).float()
        return loss, hits

    def _gathered(self, values: Tensor) -> Tensor:
        """`[B, …]` of every device, one after the other, with gradients."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values
        gathered: Any = self.all_gather(values, sync_grads=values.is_floating_point())
        return gathered.flatten(0, 1)

    def configure_optimizers(self) -> Any:
        return scheduled(self, self.rate, self.steps)


class TextStage(lightning.LightningModule):
    """The sentence encoder learns other words for what happens, before all else and only here.

    A text is drawn to the vector that the pre-trained encoder gives the canonical wording of its
    meaning, among those of all meanings: what it knows of words that the table never shows stays.
    """

    mean: Tensor
    anchors: Tensor

    def __init__(self, model: VLJepa, words: TextTokenizer, rate: float, steps: int):
        super().__init__()
        self.y_encoder, self.words, self.rate, self.steps = model.y_encoder, words, rate, steps
        self.y_encoder.projector.requires_grad_(False)
        self.y_encoder.model.requires_grad_(True)
        self.y_encoder.model.get_input_embeddings().requires_grad_(False)
        if (pooler := getattr(self.y_encoder.model, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # the mean is over the hidden states
        self.meanings = list(dict.fromkeys(language.meanings()))
        self.row = {meaning: row for row, meaning in enumerate(self.meanings)}
        with torch.no_grad():
            vectors = torch.cat([
                self.vectors(self.meanings[start : start + TEXTS_AT_ONCE])
                for start in range(0, len(self.meanings), TEXTS_AT_ONCE)
            ])  # fmt: skip
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("anchors", self.centred(vectors))

    def vectors(self, texts: list[str]) -> Tensor:
        """Sentence vectors `[N, hidden]`."""
        ids, mask = tokens(self.words, texts)
        longest = int(mask.sum(1).max())
        device = self.y_encoder.projector.weight.device
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        return self.y_encoder.sentence(ids, mask).float()

    def centred(self, vectors: Tensor) -> Tensor:
        """Unit vectors `[N, hidden]` without what all sentences have in common."""
        return F.normalize(vectors - self.mean, dim=-1)

    def training_step(self, batch: tuple[list[str], list[str]], _index: int) -> Tensor:
        texts, meant = batch
        rows = torch.tensor([self.row[meaning] for meaning in meant], device=self.device)
        cosines = self.centred(self.vectors(texts)) @ self.anchors.T
        loss = F.cross_entropy(cosines / TEXT_TEMPERATURE, rows)
        right = (cosines.argmax(1) == rows).float().mean()
        self.log_dict({"texts": loss, "right": right}, prog_bar=True, batch_size=len(texts))
        return loss

    def configure_optimizers(self) -> Any:
        return scheduled(self, self.rate, self.steps)


class DecoderStage(lightning.LightningModule):
    """The Y-decoder on pairs of an embedding and the words it should become."""

    def __init__(self, model: VLJepa, decoder_tokens: TextTokenizer, rate: float, steps: int):
        super().__init__()
        assert model.y_decoder is not None  # whoever trains one has looked
        self.decoder, self.decoder_tokens = model.y_decoder, decoder_tokens
        self.decoder.requires_grad_(True)
        self.rate, self.steps = rate, steps

    def training_step(self, batch: tuple[Tensor, list[str]], _index: int) -> Tensor:
        embeddings, texts = batch
        loss = self.loss(embeddings, texts)
        self.log("decoder", loss, prog_bar=True, batch_size=len(texts))
        return loss

    def loss(self, embeddings: Tensor, texts: list[str]) -> Tensor:
        """Cross entropy of the next token; `embeddings` `[B, D]`."""
        ids, mask = tokens(self.decoder_tokens, texts)
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest].to(embeddings.device), mask[:, :longest].to(embeddings.device)
        begin = ids.new_full((len(ids), 1), BEGIN)
        inputs = torch.cat([begin, ids], dim=1)
        targets = F.pad(ids.masked_fill(mask == 0, PAD), (0, 1), value=PAD)
        targets[torch.arange(len(ids)), mask.sum(1)] = END
        states, _ = self.decoder.states(embeddings, inputs, self.decoder.empty_cache(len(ids)))
        logits = self.decoder.logits(states).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), ignore_index=PAD)

    def configure_optimizers(self) -> Any:
        return scheduled(self, self.rate, self.steps)


def scheduled(module: lightning.LightningModule, rate: float, steps: int) -> Any:
    """AdamW without decay on vectors; warm-up, a plateau, then a linear fall to zero."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        return min(
            1.0, (step + 1) / min(WARM_UP, steps / 4), max(0.0, (steps - step) / (DECAY * steps))
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
