"""Learning a site's own words: from a bundle of an image encoder to a predictor of its own.

Invariant: what the bundle is judged by was earned by a predictor that had not seen the held-out
clips; the predictor that is kept has learnt from all lines, for as many steps and as it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor
from torch.nn import functional as F

from vljepa_ros.bundle.locate import find_bundle
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime

from ..base import WEIGHTS
from ..finetune import begin, summary
from ..lines import WHOLE, Choice, Line, read
from ..loop import save, use_threads
from ..recordings import Recordings, meaning, split
from .predictor import SitePredictor, Sizes, fitted
from .thresholds import thresholds
from .tokens import VIEWS, KeptTokens, keep_tokens

SITE, SIZES, JUDGED = "site.json", "sizes.json", "judged"
TEMPERATURE, SMOOTHING = 0.07, 0.1
MIXED = (-0.3, 1.3)  # two clips of one answer, mixed and beyond: other people, other things
SHIFTED = 0.7  # deviation of a shift that all frames of a clip get, in the whitened directions
RATE, DECAY = 1e-3, 0.05


@dataclass(frozen=True)
class SiteRecipe:
    """How long and with what a site's predictor learns."""

    steps: int = 400
    batch: int = 32
    seed: int = 0


def is_of_images(source: str) -> bool:
    """Whether `source` means a bundle whose X-encoder takes one frame at a time."""
    if (Path(source).expanduser() / "recipe.json").is_file():
        return False  # a training
    return load_bundle(find_bundle(source), verify=False).clip.chunk == 1


def is_site(run: Path) -> bool:
    """Whether `run` is the folder of such a training."""
    return (run / SITE).is_file()


def learn(
    file: Path,
    source: str,
    out: Path,
    recipe: SiteRecipe,
    say: Callable[[str], None],
    choice: Choice = WHOLE,
) -> Path:
    """Learn what `file` names from the bundle that `source` means; returns `out`.

    `file`, `choice`: as of `finetune`. `say` is given what the user should read. Raises
    RecordingsError, BundleError, and VLJepaError for another training in `out`.
    """
    use_threads(1)  # matrices this small wait for each other longer than they take
    bundle = load_bundle(find_bundle(source))
    given = read(file, None, choice)
    recordings = Recordings(given, bundle.clip, bundle.resample, bundle.resize)
    lines = recordings.lines
    learnt, held = split(lines, recipe.seed)
    begin(out, given, {"from": bundle.model_id, "bundle": str(bundle.path)}, recipe)
    for sentence in recordings.left_out:
        say(sentence)
    say(summary(recordings, learnt, held))
    model = Runtime(bundle, "onnxruntime-cpu", parts=("x_encoder", "y_encoder"))
    kept = keep_tokens(model, recordings, out, recipe.seed, say)
    answers = list(dict.fromkeys(line.answer for line in lines))
    texts = model.embed_text(answers)
    model.close()
    for folder, some in ((out / JUDGED, learnt), (out, lines)):
        _learn(kept, some, answers, texts, recipe, folder)
    judged = judge(load_site(out, JUDGED), kept, held, answers, texts)
    say(
        f"held out: the right answer is nearest to {judged['right']:.0%} of {judged['clips']} clips"
    )
    told = {"answers": answers, "judged": judged,
            **thresholds(load_site(out), kept, lines, judged)}  # fmt: skip
    (out / SITE).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return out


def _learn(
    kept: KeptTokens, lines: Sequence[Line], answers: Sequence[str], texts: np.ndarray,
    recipe: SiteRecipe, folder: Path,
) -> None:  # fmt: skip
    """Learn from some lines, by InfoNCE against all answers; keep the weights in `folder`."""
    if (folder / WEIGHTS).is_file():
        return
    torch.manual_seed(recipe.seed)
    sources = {line.source for line in lines}
    seen = np.concatenate([tokens.reshape(-1, tokens.shape[-1])
                           for source, tokens in kept.of.items() if source in sources])  # fmt: skip
    predictor = fitted(seen, kept.recordings.clip.frames, texts.shape[1])
    optimizer = torch.optim.AdamW(predictor.parameters(), RATE, weight_decay=DECAY)
    draw, targets = Draw(kept, lines, answers, recipe), torch.from_numpy(texts.T)
    for _ in range(recipe.steps):
        tokens, wanted = draw.batch()
        states = predictor.project(tokens)
        states = states + SHIFTED * torch.randn_like(states[:, :1])
        cosines = predictor.answer(states) @ targets
        loss = F.cross_entropy(cosines / TEMPERATURE, wanted, label_smoothing=SMOOTHING)
        loss = loss - cosines[torch.arange(len(wanted)), wanted].mean()  # which InfoNCE leaves open
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder.mkdir(exist_ok=True)
    (folder / SIZES).write_text(json.dumps(asdict(predictor.sizes), indent=2) + "\n")
    save(predictor, folder)


class Draw:
    """Batches of the tokens of clips, answers balanced, the same for a seed."""

    def __init__(
        self, kept: KeptTokens, lines: Sequence[Line], answers: Sequence[str], recipe: SiteRecipe
    ) -> None:
        self.kept, self.size = kept, recipe.batch
        self.rng = np.random.default_rng(recipe.seed)
        number = {meaning(answer): k for k, answer in enumerate(answers)}
        self.of: dict[int, list[Line]] = {}
        for line in lines:
            self.of.setdefault(number[meaning(line.answer)], []).append(line)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Tokens float32 `[B, T, Dv]`, and the numbers of their answers `[B]`."""
        answers = self.rng.choice(list(self.of), self.size)
        tokens = np.stack([self._mixed(self.of[answer]) for answer in answers])
        return torch.from_numpy(tokens), torch.from_numpy(answers)

    def _mixed(self, lines: list[Line]) -> np.ndarray:
        share = np.float32(self.rng.uniform(*MIXED))
        return share * self._clip(lines) + (1 - share) * self._clip(lines)

    def _clip(self, lines: list[Line]) -> np.ndarray:
        line = lines[self.rng.integers(len(lines))]
        newest = self.kept.recordings.newest(line)
        view = int(self.rng.integers(VIEWS))
        return self.kept.clip(line, newest[self.rng.integers(len(newest))], view)


def load_site(run: Path, part: str = "") -> SitePredictor:
    """The predictor in the folder of a finished training; VLJepaError where it is not finished."""
    folder = run / part
    if not (folder / WEIGHTS).is_file():
        raise VLJepaError(
            f"{run} holds no finished training; let `vljepa train {run} --data …` run to its end."
        )
    predictor = SitePredictor(Sizes(**json.loads((folder / SIZES).read_text())))
    load_model(predictor, str(folder / WEIGHTS))
    return predictor.eval()


def judge(
    predictor: SitePredictor, kept: KeptTokens, held: Sequence[Line], answers: Sequence[str],
    texts: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """How many held-out clips have the right answer nearest, and cosines.

    `sure`: the cosine of the right answer that 95 % of the clips are above; `wrong`: that of
    wrong answers that 95 % are below.
    """
    looks = [(line, k) for line in held for k in kept.recordings.looks(line)]
    cosines = predictor.predict(np.stack([kept.clip(*look) for look in looks])) @ texts.T
    meant = np.array([[meaning(a) == meaning(line.answer) for a in answers] for line, _ in looks])
    right = meant[np.arange(len(looks)), cosines.argmax(1)]
    return {
        "clips": len(looks), "answers": len(answers), "right": round(float(right.mean()), 3),
        "sure": round(float(np.quantile(cosines[meant], 0.05)), 3),
        "wrong": round(float(np.quantile(cosines[~meant], 0.95)), 3) if (~meant).any() else 0.0,
    }  # fmt: skip
