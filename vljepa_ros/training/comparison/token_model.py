"""The token-generating model that VL-JEPA is compared with (paper, section 4.5).

Invariant: it sees what the predictor sees, visual tokens merged in the same way and the question in
the same token ids, and says its answer in the Y-decoder's token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.config import VLJepaConfig
from vljepa_ros.model.networks import ATTENTION, MASKED

from ..texts import BEGIN, END, PAD

IGNORED = -100  # a target that is not asked for


class TokenModel(nn.Module):
    """Visual tokens and a question as prefix, then a causal Llama language model.

    The Llama blocks are as wide as the predictor's and the token embedding is tied to the output,
    as in Llama-3.2-1B, whose last half the paper's predictor is.
    """

    def __init__(self, config: VLJepaConfig, layers: int):
        super().__init__()
        blocks, vision = config.predictor_config, config.x_encoder_config
        width = vision.hidden_size * config.visual_merge**2
        self.vis_proj = nn.Linear(width, blocks.hidden_size)
        changed = {"num_hidden_layers": layers, "tie_word_embeddings": True}
        language = LlamaConfig(**{**blocks.to_dict(), **changed})
        language._attn_implementation = ATTENTION
        self.language = LlamaForCausalLM(language)
        nn.init.trunc_normal_(self.vis_proj.weight, std=blocks.initializer_range)
        nn.init.zeros_(self.vis_proj.bias)

    def states(self, merged: Tensor, ids: Tensor) -> Tensor:
        """Hidden states `[B, L, hidden]` of text `ids` `[B, L]` after visual tokens `[B, N, C]`."""
        inputs = torch.cat([self.vis_proj(merged), self.embed(ids)], dim=1)
        states = self.language.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return states[:, merged.shape[1] :]

    def embed(self, ids: Tensor) -> Tensor:
        return self.language.get_input_embeddings()(ids)

    def loss(self, merged: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of the next token where `targets` `[B, L]` is not `IGNORED`."""
        asked = targets != IGNORED  # without the rest, the wide output layer costs little
        logits = self.language.lm_head(self.states(merged, ids)[asked])
        return F.cross_entropy(logits.float(), targets[asked])

    def generate(self, merged: Tensor, question: Tensor, longest: int) -> list[list[int]]:
        """Greedy answers, token ids each, to one question `[Q]` (with `BEGIN`) about B clips."""
        cache = DynamicCache(config=self.language.config)

        def step(inputs: Tensor) -> Tensor:
            states = self.language.model(
                inputs_embeds=inputs, past_key_values=cache, use_cache=True
            ).last_hidden_state
            return self.language.lm_head(states[:, -1])

        asked = self.embed(question)[None].expand(len(merged), -1, -1)
        first = step(torch.cat([self.vis_proj(merged), asked], dim=1))
        return greedy(first, lambda ids: step(self.embed(ids)), longest)

    def score(self, merged: Tensor, question: Tensor, tree: TokenTree) -> Tensor:
        """Mean log probability a token `[B, S]` of S candidates as answers to one question `[Q]`.

        The highest has the lowest perplexity: so the paper lets a language model classify.
        """
        prefix = merged.shape[1] + len(question)
        inputs = torch.cat([question, tree.tokens[tree.inner]])
        asked = self.embed(inputs)[None].expand(len(merged), -1, -1)
        states = self.language.model(
            inputs_embeds=torch.cat([self.vis_proj(merged), asked], dim=1),
            attention_mask=tree.mask(prefix),
            position_ids=tree.positions(prefix)[None],
            use_cache=False,
        ).last_hidden_state[:, prefix - 1 :]
        said = self.language.lm_head(states).float().log_softmax(-1)
        nodes = said[:, tree.parents, tree.tokens]  # [B, nodes]
        nodes = F.pad(nodes, (0, 1))  # the last stands for no node
        return nodes[:, tree.paths].sum(-1) / (tree.paths != len(tree.tokens)).sum(-1)


def twice_as_large(config: VLJepaConfig, parameters: int) -> TokenModel:
    """The token model whose number of trainable parameters is nearest to twice `parameters`."""
    one, two = (trainable(TokenModel(config, layers)) for layers in (1, 2))
    layers = 1 + round((2 * parameters - one) / (two - one))
    return TokenModel(config, max(1, layers))


def trainable(module: nn.Module) -> int:
    """The number of trainable parameters; a tied one counts once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class TokenTree:
    """Candidate answers as a tree of tokens: a beginning that several share is computed once."""

    def __init__(self, candidates: Sequence[Sequence[int]]):
        """`candidates` are token ids without `BEGIN`, each ending in `END`."""
        found: dict[tuple[int, ...], int] = {}  # beginning -> node
        tokens, above, paths = list[int](), list[int](), list[list[int]]()
        for ids in candidates:
            for length in range(1, len(ids) + 1):
                beginning = tuple(ids[:length])
                if beginning not in found:
                    found[beginning] = len(tokens)
                    tokens.append(ids[length - 1])
                    above.append(found.get(beginning[:-1], -1))
            paths.append([found[tuple(ids[:length])] for length in range(1, len(ids) + 1)])
        self.tokens = torch.tensor(tokens)
        self.paths = _ragged(paths, len(tokens))  # [S, longest], len(tokens) for no node
        self.inner = (self.tokens != END).nonzero()[:, 0]  # the nodes that something follows
        place = torch.full((len(tokens) + 1,), -1)  # of a node among the inner ones; root: -1
        place[self.inner] = torch.arange(len(self.inner))
        above_inner = place[torch.tensor(above)]
        self.parents = above_inner + 1  # 0: the root, the last token of the prefix
        self._above = above_inner[self.inner]

    def mask(self, prefix: int) -> Tensor:
        """What each of the prefix's tokens and inner nodes may see, `[1, 1, T, T]`, 0 or MASKED."""
        nodes = len(self.inner)
        seen = torch.eye(nodes, dtype=torch.bool)
        for node, above in enumerate(self._above.tolist()):  # parents come before their children
            if above >= 0:
                seen[node] |= seen[above]
        whole = torch.ones(prefix + nodes, prefix + nodes, dtype=torch.bool).tril()
        whole[prefix:, prefix:] = seen
        return torch.where(whole, 0.0, MASKED)[None, None]

    def positions(self, prefix: int) -> Tensor:
        """Where each token stands in its own sentence, `[T]`."""
        depth: list[int] = []
        for above in self._above.tolist():
            depth.append(0 if above < 0 else depth[above] + 1)
        return torch.cat([torch.arange(prefix), prefix + torch.tensor(depth)])


def greedy(
    first: Tensor, step: Callable[[Tensor], Tensor], longest: int
) -> list[list[int]]:  # fmt: skip
    """The likeliest token again and again, until every text has ended.

    `first` are the logits `[B, V]` of the first token; `step` gives the next ones for the newest
    ids `[B, 1]`.
    """
    said = [first.argmax(-1, keepdim=True)]
    ended = said[0] == END
    while len(said) < longest and not ended.all():
        said.append(step(said[-1]).argmax(-1, keepdim=True))
        ended |= said[-1] == END
    rows = torch.cat(said, dim=1).tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


def question_and_answer(
    query_tokens: TextTokenizer, answer_tokens: TextTokenizer, queries: Sequence[str],
    answers: Sequence[str],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Ids and targets `[N, L]` of question, `BEGIN` and answer; targets end with `END`."""
    ids, targets = [], []
    for asked, said in zip(
        rows_of(query_tokens, queries), rows_of(answer_tokens, answers), strict=True
    ):
        ids.append([*asked, BEGIN, *said])
        targets.append([IGNORED] * len(asked) + [*said, END])
    return _ragged(ids, PAD), _ragged(targets, IGNORED)


def rows_of(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without padding."""
    ids, mask = tokenizer(texts)
    return [row[: int(kept.sum())].tolist() for row, kept in zip(ids, mask, strict=True)]


def _ragged(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
