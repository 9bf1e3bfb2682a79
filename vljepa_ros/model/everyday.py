"""The networks of the bundle `everyday`: a public picture classifier, and what its classes mean.

Invariant: nothing is learnt here. The X-encoder has the weights of EfficientNet-Lite (Tan and Le
2019; its "lite" form has no squeeze-and-excitation and ReLU6 in the place of swish), with the batch
normalisation folded into the convolutions; the predictor is ConSE (Norouzi et al. 2014): the sum of
the embeddings of the most probable classes, each weighted by its probability. Shapes: B clips, T
frames, S pixels, F features, C classes, D numbers in an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from .convolutional import Block, Convolution
from .networks import masked_mean
from .people import PersonScore

# (repeats, kernel, stride, expansion, channels) of the stages of EfficientNet-B0 and Lite0.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280
MEAN, DEVIATION = 127.0, 128.0  # grey levels
BEST = 10  # classes that are summed
NONE = 8.5  # evidence for none of the classes, as a classifier has it that tells such pictures
SOFTLY = 0.1  # how surely it is said that nobody is there
CLEARLY = 0.8  # how surely it is said that somebody is there, beside the classes
SHARPLY = 30.0  # slope of who is there over the share of the clip in which somebody is seen
MODEL_TYPE = "everyday"


class LiteEncoder(nn.Module):
    """EfficientNet-Lite0 up to its features: uint8 frames `[B, 1, S, S, 3]` to `[B, 1, F]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, stride=2)
        blocks, channels = [], STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(channels, out, kernel, 1 if repeat else stride, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(channels, HEAD, 1)

    def forward(self, frames: Tensor) -> Tensor:
        pixels = (frames.flatten(0, 1).float() - MEAN) / DEVIATION
        states = self.stem(pixels.permute(0, 3, 1, 2))
        for block in self.blocks:
            states = block(states)
        return self.head(states).mean((2, 3))[:, None]

    def sources(self) -> Iterator[tuple[str, str, str]]:
        """Of each convolution: its name here, and those of its weight and normalisation there.

        "There" is the public file.
        """
        yield "stem", "_conv_stem", "_bn0"
        for number, block in enumerate(self.blocks):
            for norm, part in enumerate(("expand", "depthwise", "project")):
                if getattr(block, part) is not None:
                    there = f"_blocks.{number}"
                    yield f"blocks.{number}.{part}", f"{there}._{part}_conv", f"{there}._bn{norm}"
        yield "head", "_conv_head", "_bn1"


class Eyes(nn.Module):
    """The X-encoder: uint8 frames `[B, 1, S, S, 3]` to visual tokens `[B, 1, F]`, or `[B, 1, F+1]`.

    `people` tells of pictures uint8 `[B, S, S, 3]` how surely somebody is in them, `[B]`, 0 to 1:
    the last number of a token.
    """

    def __init__(self, people: nn.Module | None = None):
        super().__init__()
        self.features = LiteEncoder()
        self.people = people

    def forward(self, frames: Tensor) -> Tensor:
        tokens = self.features(frames)
        if self.people is None:
            return tokens
        return torch.cat([tokens, self.people(frames[:, 0])[:, None, None]], dim=-1)


class ConSE(nn.Module):
    """What a clip shows, `[B, 1, D]` of unit length, of its frames' visual tokens.

    `words`: what the classes mean, `[C, D]` of unit length. One more class, of none of them, has
    the evidence `NONE`. The sum is the shorter the less sure the classifier is, and the less its
    best classes have in common; what it lacks of unit length lies in the direction `unsure` `[D]`,
    which no word has. So the cosine to a text is what the classes say of it, each by its
    probability.

    `people` `[2, D]`: what somebody and nobody mean, where the tokens tell of people. Somebody is
    added to the classes as one of which nothing is in doubt; nobody is said softly, so that
    anything else is said first.
    """

    def __init__(self, words: Tensor, unsure: Tensor, people: Tensor | None = None):
        super().__init__()
        self.classes = nn.Linear(HEAD, len(words))
        self.words, self.unsure = nn.Parameter(words), nn.Parameter(unsure)
        self.somebody = self.nobody = None
        if people is not None:  # each by itself: the exporter would keep rows of one, nameless
            self.somebody, self.nobody = (nn.Parameter(row.clone()) for row in people)

    def forward(self, visual_tokens: Tensor) -> Tensor:
        evidence = F.pad(self.classes(visual_tokens[..., :HEAD]), (0, 1), value=NONE)
        chances = evidence.softmax(-1)[..., :-1].mean(1)
        least = chances.topk(BEST, dim=-1).values[:, -1:]
        meaning = (chances * (chances >= least)) @ self.words
        if self.somebody is not None and self.nobody is not None:
            share = visual_tokens[..., HEAD].mean(1)[:, None]
            somebody = torch.sigmoid(SHARPLY * (share - 0.5))
            meaning = (1 - SOFTLY) * meaning + SOFTLY * (1 - somebody) * self.nobody
            meaning = meaning + CLEARLY * somebody * self.somebody
        left = (1 - (meaning * meaning).sum(-1, keepdim=True)).clamp(min=0).sqrt()
        return F.normalize(meaning + left * self.unsure, dim=-1)[:, None]


class Sentences(nn.Module):
    """A sentence encoder: text ids and mask int64 `[B, L]` to embeddings `[B, D]`, unit length."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.model = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(masked_mean(states, mask), dim=-1)


def networks(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The networks of a bundle by the names of their graphs, untrained, in eval mode.

    `config`: `classes`, `people` (whether people are looked for), and `y_encoder_config` of BERT.
    """
    text = BertConfig.from_dict({**config["y_encoder_config"], "attn_implementation": "eager"})
    words = torch.zeros(config["classes"], text.hidden_size)
    people = torch.zeros(2, text.hidden_size) if config["people"] else None
    made = {
        "x_encoder": Eyes(PersonScore() if config["people"] else None),
        "predictor": ConSE(words, torch.zeros(text.hidden_size), people),
        "y_encoder": Sentences(text),
    }
    return {name: network.eval() for name, network in made.items()}
