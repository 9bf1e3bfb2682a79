"""The three stages of training: images, video, decoder.

Invariant: the Y-decoder has no part in the main loss (paper, section 3.2); it is trained on
embeddings that the finished model gives.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F

from vljepa_ros.model.networks import VLJepa
from vljepa_ros.runtime.text import TextTokenizer
from vljepa_ros.training.losses import StateHead, info_nce
from vljepa_ros.training.tabletop import language
from vljepa_ros.training.tabletop.vocabulary import COLOURS, SHAPES
from vljepa_ros.training.texts import BEGIN, END, PAD, Sentences, tokens

FURTHER_NEGATIVES = 128
WARM_UP = 200
DECAY = 0.25  # last part of the steps, in which the learning rate falls to zero


class JointStage(lightning.LightningModule):
    """X-encoder, predictor and the Y-encoder's head on clips (or single tubelets: images).

    The loss is InfoNCE between predicted and text embeddings, with the sentences of all events and
    texts of the past as further negatives, plus the state loss on the X-encoder's visual tokens
    (none with a `state_weight` of 0: recordings of a real robot have no such truth).
    """

    def __init__(
        self, model: VLJepa, query_tokens: TextTokenizer, sentences: Sentences, rate: float,
        steps: int, state_weight: float,
    ):  # fmt: skip
        super().__init__()
        self.model, self.query_tokens, self.sentences = model, query_tokens, sentences
        self.rate, self.steps, self.state_weight = rate, steps, state_weight
        self.canonical = list(language.canonical())
        self.model.y_encoder.model.requires_grad_(False)
        self.model.y_decoder.requires_grad_(False)
        width = model.config.x_encoder_config.hidden_size
        self.state_head = StateHead(width, len(SHAPES), len(COLOURS)) if state_weight else None
        self.log_temperature = torch.nn.Parameter(torch.tensor(0.07).log())

    @property
    def temperature(self) -> Tensor:
        """Learned, never below 0.02."""
        return self.log_temperature.exp().clamp(min=0.02)

    def training_step(self, batch: dict[str, Any], _index: int) -> Tensor:
        visual = self.model.x_encoder(batch["frames"])
        predicted = self.predict(visual, batch["queries"])
        contrast, hits = self.contrast(predicted, batch["answers"], batch["meanings"])
        first, *others = hits.view(len(visual), -1).mean(0)  # of a clip's questions
        said = {"contrast": contrast, "first": first, "temperature": self.temperature}
        if others:
            said["second"] = others[0]
        loss = contrast
        if self.state_head is not None:
            said["state"] = self.state_head(visual.float(), batch["state"])
            loss = loss + self.state_weight * said["state"]
        self.log_dict(said, prog_bar=True, batch_size=len(visual))
        return loss

    def predict(self, visual: Tensor, queries: list[str]) -> Tensor:
        """Visual tokens of B clips and B·k queries, clip by clip, to embeddings `[B·k, D]`."""
        ids, mask = tokens(self.query_tokens, queries)
        longest = int(mask.sum(1).max())  # padding is masked, so leaving it out changes nothing
        ids, mask = ids[:, :longest].to(visual.device), mask[:, :longest].to(visual.device)
        repeated = visual.repeat_interleave(len(queries) // len(visual), dim=0)
        return self.model.predictor.paired(repeated, ids, mask)

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
        return self.all_gather(values, sync_grads=values.is_floating_point()).flatten(0, 1)

    def configure_optimizers(self) -> Any:
        return scheduled(self, self.rate, self.steps)


class DecoderStage(lightning.LightningModule):
    """The Y-decoder on pairs of an embedding and the words it should become."""

    def __init__(self, model: VLJepa, decoder_tokens: TextTokenizer, rate: float, steps: int):
        super().__init__()
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
        return min(1.0, (step + 1) / WARM_UP, max(0.0, (steps - step) / (DECAY * steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
