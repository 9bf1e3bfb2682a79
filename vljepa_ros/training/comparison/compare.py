"""Predicting embeddings against predicting tokens: the paper's section 4.5 in miniature.

Invariant: both learners see the same visual tokens of the same frozen X-encoder, in the same
batches in the same order, with the same optimiser, rate and averaging; one has twice the trainable
parameters. An interrupted comparison goes on where it stopped and comes to the same figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vljepa_ros.errors import VLJepaError
from vljepa_ros.evaluation.clips import Name, wordings
from vljepa_ros.evaluation.figures import bootstrap
from vljepa_ros.evaluation.figures.cider import Cider
from vljepa_ros.evaluation.tasks.classification import figures
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import language, store
from vljepa_ros.tabletop.clips import ClipDataset

from ..loop import cpu_autocast
from ..texts import corpus, train_tokenizer
from ..train import clip_shape
from .learners import EmbeddingLearner, Learner, TokenLearner
from .visual_cache import HeldOut, VisualCache, held_out

log = logging.getLogger(__name__)

RESULT, PLAN = "comparison.json", "plan.json"
QUESTIONS = 2  # of a clip
BATCH = 32  # clips
CHECKPOINTS = 6  # each after twice as many samples as the one before
MOST_BYTES = 3e9  # of visual tokens on disk; more samples see the clips again
RATE, WARM_UP, WEIGHT_DECAY = 1e-3, 20, 0.05
AVERAGED = 8  # the larger, the more the averaged weights lean to the newest
KEPT_EVERY = 50  # steps
HELD_OUT = 30  # clips of each kind of event
SCORED = 100  # clips whose candidates the token model scores
TIMED = 40  # clips
LEARNING_SEED, HELD_OUT_SEED = 1, 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done: `clips` and `batch` count clips, `checkpoints` batches; samples are questions.

    `model` is a digest of the frozen X-encoder's weights.
    """

    model: str
    clips: int
    batch: int
    steps: int
    checkpoints: list[int]
    seed: int = LEARNING_SEED

    @classmethod
    def of(cls, model: VLJepa, samples: int) -> Plan:
        """The plan for `samples` questions, rounded to whole batches."""
        steps = max(1, round(samples / (QUESTIONS * BATCH)))
        config = model.config
        clip_bytes = 2 * config.visual_tokens * config.x_encoder_config.hidden_size
        fitting = max(1, int(MOST_BYTES / clip_bytes) // BATCH)
        return cls(
            model=_digest(model.x_encoder),
            clips=min(steps, fitting) * BATCH,
            batch=BATCH,
            steps=steps,
            checkpoints=sorted({max(1, round(steps / 2**k)) for k in range(CHECKPOINTS)}),
        )


def compare(model: VLJepa, data: Path, out: Path, samples: int) -> dict[str, Any]:
    """Train both learners on `samples` questions about clips of `data`/train; the result as JSON.

    `model` gives the frozen X-encoder, the public MiniLM the frozen sentence encoder under the
    Y-encoder's head; all else starts at random.
    `out` keeps the work, so that it may be interrupted; what is large goes when it is finished.
    """
    plan = Plan.of(model, samples)
    _agree(plan, out)
    if (out / RESULT).exists():
        return dict(json.loads((out / RESULT).read_text()))
    with _one_thread():
        result = _compare(model, data, out, plan)
    part = out / f".{RESULT}"
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(out / RESULT)
    VisualCache(out, plan.clips, model, plan.seed).remove()
    return result


def _compare(model: VLJepa, data: Path, out: Path, plan: Plan) -> dict[str, Any]:
    tokenizer = out / "tokenizer.json"
    if not tokenizer.exists():
        train_tokenizer(corpus(), model.config.predictor_config.vocab_size, tokenizer)
    model.eval()
    shape = clip_shape(model.config)
    cache = VisualCache(out, plan.clips, model, plan.seed)
    cache.fill(model, ClipDataset(data, shape, plan.seed, asked=QUESTIONS))
    paths = store.needed(data, "test")
    shown = held_out(model, paths, shape.frames, HELD_OUT, HELD_OUT_SEED)
    torch.manual_seed(plan.seed)
    first = EmbeddingLearner(model.config, tokenizer, cache, plan.batch)
    torch.manual_seed(plan.seed)
    second = TokenLearner(model.config, tokenizer, first.parameters()["trainable"])
    result: dict[str, Any] = {
        "protocol": {
            **dataclasses.asdict(plan), "samples": plan.steps * plan.batch * QUESTIONS,
            "learning_rate": RATE, "held_out_clips": len(shown), "threads": 1,
        },
        "chance": _chance(shown),
    }  # fmt: skip
    averaged = {}
    for name, learner in (("vl_jepa", first), ("token_model", second)):
        learned, averaged[name] = learn(learner, cache, plan, shown, out / f"{name}.pt")
        result[name] = {"parameters": learner.parameters(), **learned}
    scored = np.random.default_rng(plan.seed).permutation(len(shown))[:SCORED]
    result["token_model"]["by_perplexity"] = _by_perplexity(
        second, averaged["token_model"], shown, np.sort(scored)
    )
    result["milliseconds"] = latencies(model, first, second, averaged, shown)
    return result


def learn(
    learner: Learner, cache: VisualCache, plan: Plan, shown: HeldOut, kept: Path
) -> tuple[dict[str, Any], nn.Module]:
    """Train a learner by the plan, going on from `kept`; its curve and its averaged networks.

    The rate stays constant after the warm-up and a checkpoint is judged with weights averaged over
    about the last tenth of the steps, so each is what a training of that length would give.
    """
    networks = learner.networks
    averaged = AveragedModel(networks, avg_fn=_recent)
    optimizer = _optimizer(networks)
    done, seconds, curve, losses = 0, 0.0, list[dict[str, Any]](), list[float]()
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        networks.load_state_dict(state["networks"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        learner.load_state(state["learner"])
        done, seconds, curve, losses = (state[k] for k in ("done", "seconds", "curve", "losses"))
    for step in range(done, plan.steps):
        began = time.process_time()
        losses.append(_step(learner, cache, plan, step, optimizer))
        averaged.update_parameters(networks)
        seconds += time.process_time() - began
        if step + 1 in plan.checkpoints:
            point = measure(learner, averaged.module, shown, step + 1, plan.seed)
            point["loss"] = float(np.mean(losses[-max(1, len(losses) // 10) :]))
            curve.append({"samples": (step + 1) * plan.batch * QUESTIONS, **point})
            log.info("%s: %s", kept.stem, {k: _short(v) for k, v in curve[-1].items()})
        if step + 1 in plan.checkpoints or (step + 1) % KEPT_EVERY == 0:
            _keep(kept, {
                "networks": networks.state_dict(), "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(), "learner": learner.state(),
                "done": step + 1, "seconds": seconds, "curve": curve, "losses": losses,
            })  # fmt: skip
    return {"training_cpu_seconds": seconds, "curve": curve}, averaged.module


def _step(
    learner: Learner, cache: VisualCache, plan: Plan, step: int, optimizer: torch.optim.Optimizer
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP)
    with cpu_autocast():
        loss = learner.loss(step, cache.batch(step, plan.batch))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learner.networks.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def measure(
    learner: Learner, networks: Any, shown: HeldOut, steps: int, seed: int
) -> dict[str, Any]:
    """Captioning and classification on held-out clips after `steps` batches.

    `cider` and `said` are of the text; `classified`, of VL-JEPA only, names the nearest of all
    canonical sentences.
    """
    networks.eval()
    with torch.enable_grad():
        learner.learn_to_speak(networks, steps, seed)
    parts = shown.visual.split(BATCH)
    captions = [text for visual in parts for text in learner.describe(networks, visual)]
    point: dict[str, Any] = _judged(captions, shown)
    if isinstance(learner, EmbeddingLearner):
        labels = language.canonical()
        chosen = [n for visual in parts for n in learner.classify(networks, visual, labels)]
        point["classified"] = _named(shown, chosen)
    networks.train()
    return point


def _judged(captions: Sequence[str], shown: HeldOut) -> dict[str, Any]:
    references = [wordings(clip.name) for clip in shown.clips]
    cider = Cider(references)
    scores = [cider.score(said, meant) for said, meant in zip(captions, references, strict=True)]
    return {
        "cider": bootstrap.mean(scores, [clip.episode for clip in shown.clips]),
        "said": _named(shown, [language.name_event(plain(text)) for text in captions]),
    }


def plain(text: str) -> str:
    """A sentence with the usual words for colours and shapes where training has others for them."""
    things = (*language.COLOURS, *language.SHAPES)
    usual = {other: word for word in things for other in language.REWORDINGS[word]}
    longest_first = sorted(usual, key=len, reverse=True)
    return re.sub(rf"\b({'|'.join(longest_first)})\b", lambda found: usual[found[0]], text)


def _named(shown: HeldOut, names: Sequence[Name]) -> dict[str, Any]:
    return figures(cast("Any", shown.clips), [[name] for name in names])


def _chance(shown: HeldOut) -> dict[str, Any]:
    """What the true sentences of other clips, drawn at random, would get."""
    other = np.random.default_rng(0).permutation(len(shown))
    return _judged([wordings(shown.clips[i].name)[0] for i in other], shown)


@torch.no_grad()
def _by_perplexity(
    learner: TokenLearner, networks: Any, shown: HeldOut, chosen: np.ndarray
) -> dict[str, Any]:
    """The paper's way to let a token model classify, on some of the clips."""
    some = HeldOut([shown.clips[i] for i in chosen], shown.visual[chosen])
    names = learner.classify(networks.eval(), some.visual, language.canonical())
    return {"clips": len(some), **_named(some, names)}


@torch.no_grad()
def latencies(
    model: VLJepa, first: EmbeddingLearner, second: TokenLearner, averaged: dict[str, Any],
    shown: HeldOut,
) -> dict[str, float]:  # fmt: skip
    """Median milliseconds per clip, one clip at a time, of what a robot would wait for.

    The models take turns, so that what else the machine does touches all alike.
    """
    vision = model.config.x_encoder_config
    pixels = (1, vision.frames_per_clip, vision.crop_size, vision.crop_size, 3)
    frames = torch.randint(0, 256, pixels, dtype=torch.uint8)
    one, two = averaged["vl_jepa"].eval(), averaged["token_model"].eval()
    taken: dict[str, list[float]] = {}

    def clock(name: str, began: float) -> None:
        taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))

    for index in range(-2, min(TIMED, len(shown))):  # the first two warm up
        visual = shown.visual[max(0, index)][None]
        for name, run in (
            ("x_encoder", lambda: model.x_encoder(frames)),
            ("vl_jepa_embedding", lambda seen=visual: first.embed(one, seen)),
            ("vl_jepa_words", lambda seen=visual: first.describe(one, seen)),
            ("token_model_words", lambda seen=visual: second.describe(two, seen)),
        ):
            began = time.perf_counter()
            run()
            if index >= 0:
                clock(name, began)
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    words = medians["token_model_words"]
    return {
        **medians,
        "token_model_to_vl_jepa_words": words / medians["vl_jepa_words"],
        "token_model_to_vl_jepa_embedding": words / medians["vl_jepa_embedding"],
    }


def _optimizer(networks: nn.Module) -> torch.optim.Optimizer:
    """AdamW without decay on vectors, as in training."""
    parameters = list(networks.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))


def _recent(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Polynomial averaging: always over the same share of the steps so far."""
    return average + (current - average) * (AVERAGED + 1) / (count + AVERAGED + 1)


def _agree(plan: Plan, out: Path) -> None:
    """Write the plan, or see that the work begun in `out` follows the same one."""
    out.mkdir(parents=True, exist_ok=True)
    said = dataclasses.asdict(plan)
    if not (out / PLAN).exists():
        (out / PLAN).write_text(json.dumps(said, indent=2) + "\n")
    elif json.loads((out / PLAN).read_text()) != said:
        raise VLJepaError(
            f"{out} holds a comparison of another model or with other samples: "
            "remove it or name another folder."
        )


def _keep(path: Path, state: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}")
    torch.save(state, part)
    part.replace(path)


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            round(value["value"], 3)
            if "value" in value
            else {k: _short(v) for k, v in value.items()}
        )
    return round(value, 3)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
