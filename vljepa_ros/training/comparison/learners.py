"""The two learners of the comparison: one predicts embeddings, the other tokens.

Invariant: both are told the same of a batch, the visual tokens, the questions and the answers as
worded; neither is told which wordings mean the same, nor which events there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vljepa_ros.errors import VLJepaError
from vljepa_ros.evaluation.clips import Name
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.config import VLJepaConfig
from vljepa_ros.model.networks import VLJepa

from ..loop import cpu_autocast
from ..losses import info_nce
from ..stages import DecoderStage
from ..texts import BEGIN, END, Sentences, sentence_encoder_folder, tokens
from .token_model import (
    TokenModel,
    TokenTree,
    greedy,
    question_and_answer,
    rows_of,
    trainable,
    twice_as_large,
)
from .visual_cache import Batch, VisualCache

EARLIER = 3  # batches whose answers are further negatives
SPOKEN = 1024  # newest clips whose embeddings the Y-decoder learns from at a checkpoint
FIRST_STEPS, NEXT_STEPS = 300, 100  # of the Y-decoder, at the first checkpoint and at the others
PAIRS = 96  # of embedding and text in a step of the Y-decoder
NOISE = 0.02  # on the embeddings of texts
DECODER_RATE = 1e-3
TREE = 64  # candidates scored at once; attention is between all their tokens


class EmbeddingNetworks(nn.Module):
    """What VL-JEPA trains here: the predictor, the Y-encoder's head and the temperature."""

    def __init__(self, model: VLJepa):
        super().__init__()
        self.predictor, self.head = model.predictor, model.y_encoder.projector
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def predict(self, visual: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Merged visual tokens of B clips and B·k queries, clip by clip, to `[B·k, D]`."""
        vision = self.predictor.seen(visual).repeat_interleave(len(ids) // len(visual), dim=0)
        return self.predictor.answer(vision, self.predictor.embed_tokens(ids), mask)

    def write(self, sentences: Tensor) -> Tensor:
        """Frozen sentence vectors `[N, H]` to text embeddings `[N, D]`."""
        return F.normalize(self.head(sentences).float(), dim=-1)


class EmbeddingLearner:
    """VL-JEPA: predictor and Y-encoder's head learn by InfoNCE (paper, section 3.2).

    At a checkpoint its Y-decoder learns to say that checkpoint's embeddings in the answers of the
    clips seen so far, going on from the checkpoint before; the main loss knows nothing of it.
    """

    def __init__(self, config: VLJepaConfig, tokenizer: Path, cache: VisualCache, clips: int):
        self.cache, self.clips = cache, clips
        fresh = VLJepa(config)
        if fresh.y_decoder is None:
            raise VLJepaError("captioning is compared too: give a model that has a Y-decoder.")
        _read_before(fresh)
        self.networks, self.decoder = EmbeddingNetworks(fresh), fresh.y_decoder
        words = TextTokenizer(sentence_encoder_folder() / "tokenizer.json", config.text_length)
        self.sentences = Sentences(fresh.y_encoder, words)
        self.query_tokens = TextTokenizer(tokenizer, config.query_length)
        self.answer_tokens = TextTokenizer(tokenizer, config.text_length)
        self.spelling = DecoderStage(fresh, self.answer_tokens, DECODER_RATE, NEXT_STEPS)
        self.spoken_steps = 0
        self.query = config.default_query
        self.longest = min(config.text_length, config.y_decoder_config.max_position_embeddings)

    def parameters(self) -> dict[str, Any]:
        """How many are trained, how many of them are the queries' token embedding, what is left."""
        frozen = sum(p.numel() for p in self.sentences.y_encoder.model.parameters())
        return {
            "trainable": trainable(self.networks),
            "of_these_token_embedding": self.networks.predictor.embed_tokens.weight.numel(),
            "layers": len(self.networks.predictor.layers),
            "not_counted": {
                "y_decoder, trained apart": trainable(self.decoder),
                "sentence encoder, frozen": frozen,
            },
        }

    def loss(self, step: int, batch: Batch) -> Tensor:
        """InfoNCE in the batch, with the answers of the batches before as further negatives."""
        predicted = self._predict(self.networks, batch.visual, batch.queries)
        texts = list(batch.answers)
        for back in range(1, EARLIER + 1):
            texts += self.cache.answers(step - back, self.clips)
        rows = self.sentences.rows(texts, texts)  # each means itself: equal texts are no negatives
        written = self.networks.write(self.sentences.vectors[rows])
        meanings = self.sentences.meaning_of_row[rows]
        temperature = self.networks.log_temperature.exp().clamp(min=0.02)
        return info_nce(predicted, written, meanings, temperature)

    def _predict(
        self, networks: EmbeddingNetworks, visual: Tensor, queries: Sequence[str]
    ) -> Tensor:
        ids, mask = tokens(self.query_tokens, queries)
        longest = int(mask.sum(1).max())  # padding is masked, so leaving it out changes nothing
        return networks.predict(visual, ids[:, :longest], mask[:, :longest])

    def learn_to_speak(self, networks: EmbeddingNetworks, steps: int, seed: int) -> None:
        """Train the Y-decoder on what `steps` batches have shown."""
        newest = range(max(0, steps - SPOKEN // self.clips), steps)
        chosen = np.concatenate([self.cache.indices(step, self.clips) for step in newest])
        with torch.no_grad():
            shown = [self.cache.at(some) for some in np.array_split(chosen, len(newest))]
            predicted = torch.cat([self._predict(networks, b.visual, b.queries) for b in shown])
            said = [answer for batch in shown for answer in batch.answers]
            answers = (self.cache.answers(step, self.clips) for step in range(steps))
            read = list(dict.fromkeys(text for texts in answers for text in texts))
            rows = self.sentences.rows(read, read)
            written = networks.write(self.sentences.vectors[rows])
        rng = np.random.default_rng([seed, steps])
        count = FIRST_STEPS if self.spoken_steps == 0 else NEXT_STEPS
        optimizer = torch.optim.AdamW(self.decoder.parameters(), DECODER_RATE, betas=(0.9, 0.98))
        for step in range(count):
            for group in optimizer.param_groups:
                group["lr"] = DECODER_RATE * min(1, (step + 1) / 20, 2 - 2 * step / count)
            seen = rng.integers(len(said), size=PAIRS // 2)
            known = rng.integers(len(read), size=PAIRS // 2)
            noise = torch.from_numpy(rng.normal(0, NOISE, (PAIRS // 2, written.shape[1])))
            noisy = F.normalize(written[known] + noise.float(), dim=-1)
            texts = [said[i] for i in seen] + [read[i] for i in known]
            with cpu_autocast():
                loss = self.spelling.loss(torch.cat([predicted[seen], noisy]), texts)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
            optimizer.step()
        self.spoken_steps += count

    def embed(self, networks: EmbeddingNetworks, visual: Tensor) -> Tensor:
        """What happens in clips `[B, N, C]`, as embeddings `[B, D]`."""
        return self._predict(networks, visual, [self.query] * len(visual))

    def describe(self, networks: EmbeddingNetworks, visual: Tensor) -> list[str]:
        """What happens in clips `[B, N, C]`, in words."""
        embeddings = self.embed(networks, visual)
        past = self.decoder.empty_cache(len(embeddings))

        def step(ids: Tensor) -> Tensor:
            nonlocal past
            logits, past = self.decoder(embeddings, ids, past)
            return logits

        first = step(torch.full((len(embeddings), 1), BEGIN))
        return [self.answer_tokens.decode(ids) for ids in greedy(first, step, self.longest)]

    def classify(
        self, networks: EmbeddingNetworks, visual: Tensor, labels: Mapping[str, Name]
    ) -> list[Name]:
        """The name of the label nearest to each clip `[B, N, C]`."""
        rows = self.sentences.rows(list(labels), list(labels))
        written = networks.write(self.sentences.vectors[rows])
        names = list(labels.values())
        return [names[i] for i in (self.embed(networks, visual) @ written.T).argmax(1).tolist()]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep beside the networks."""
        return {"decoder": self.decoder.state_dict(), "spoken_steps": self.spoken_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.decoder.load_state_dict(state["decoder"])
        self.spoken_steps = state["spoken_steps"]


class TokenLearner:
    """The token-generating model learns by cross entropy of the answer's tokens."""

    def __init__(self, config: VLJepaConfig, tokenizer: Path, parameters: int):
        """`parameters` are those of VL-JEPA; this model gets about twice as many."""
        self.networks = twice_as_large(config, parameters)
        self.query_tokens = TextTokenizer(tokenizer, config.query_length)
        self.answer_tokens = TextTokenizer(tokenizer, config.text_length)
        asked = rows_of(self.query_tokens, [config.default_query])[0]
        self.question = torch.tensor([*asked, BEGIN])
        self.longest = config.text_length

    def parameters(self) -> dict[str, Any]:
        """How many are trained, how many of them are the token embedding (tied: in and out)."""
        language = self.networks.language
        return {
            "trainable": trainable(self.networks),
            "of_these_token_embedding": language.get_input_embeddings().weight.numel(),
            "layers": language.config.num_hidden_layers,
            "not_counted": {},
        }

    def loss(self, _step: int, batch: Batch) -> Tensor:
        """Cross entropy of the answers, each after its clip and its question."""
        ids, targets = question_and_answer(
            self.query_tokens, self.answer_tokens, batch.queries, batch.answers
        )
        visual = batch.visual.repeat_interleave(len(ids) // len(batch.visual), dim=0)
        return self.networks.loss(visual, ids, targets)

    def learn_to_speak(self, networks: TokenModel, steps: int, seed: int) -> None:
        """Nothing to do: it speaks already."""

    def describe(self, networks: TokenModel, visual: Tensor) -> list[str]:
        """What happens in clips `[B, N, C]`, in words."""
        said = networks.generate(visual, self.question, self.longest)
        return [self.answer_tokens.decode(ids) for ids in said]

    def classify(
        self, networks: TokenModel, visual: Tensor, labels: Mapping[str, Name]
    ) -> list[Name]:
        """The name of the label of lowest perplexity for each clip `[B, N, C]`."""
        texts = sorted(labels)  # neighbours begin alike
        candidates = [[*ids, END] for ids in rows_of(self.answer_tokens, texts)]
        parts = range(0, len(texts), TREE)
        trees = [TokenTree(candidates[start : start + TREE]) for start in parts]
        chosen = []
        for clip in visual.split(1):
            scores = [networks.score(clip, self.question, tree) for tree in trees]
            chosen.append(int(torch.cat(scores, dim=1).argmax()))
        return [labels[texts[i]] for i in chosen]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep beside the networks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""


def _read_before(model: VLJepa) -> None:
    """Give the sentence encoder its public weights: it has not read of this world yet."""
    state = load_file(sentence_encoder_folder() / "model.safetensors")
    missing, _ = model.y_encoder.model.load_state_dict(state, strict=False)
    if missing:
        raise VLJepaError(f"the sentence encoder of {sentence_encoder_folder()} lacks {missing}.")
    model.y_encoder.model.eval()


Learner = EmbeddingLearner | TokenLearner
