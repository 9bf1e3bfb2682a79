"""Fine-tuning on a user's own recordings: from a bundle or a training to a training of their own.

Invariant: the folder that is made is laid out like a finished training and holds what its export
needs: `base.json` (what the bundle it came from says of itself) and `held_out.npz` (the clips that
it is judged on, which were never learnt from). An interrupted one goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vljepa_ros.bundle.spec import ClipSpec
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.config import CONFIG, VLJepaConfig
from vljepa_ros.tabletop.clips import collate

from .base import BASE, RECIPE, WEIGHTS, Base, load_base, resized
from .lines import WHOLE, Choice, Given, Line, read
from .loop import LAST, finished, fit, make_trainer, save, seed_of
from .recordings import RecordedClips, Recordings, item, meaning, split
from .retrieval_stop import MONITOR, by_query, stop_on_retrieval
from .stages import DecoderStage, JointStage
from .texts import Sentences
from .train import DecoderPairs

log = logging.getLogger(__name__)
HELD_OUT = "held_out.npz"


@dataclass(frozen=True)
class FineTuneRecipe:
    """How long and with what a model is fine-tuned. Rates are AdamW's peak learning rates."""

    steps: int = 400
    decoder_steps: int = 300
    batch: int = 32
    decoder_batch: int = 64
    decoder_clips: int = 256
    rate: float = 3e-4
    x_encoder_rate: float = 3e-5  # it has seen more than a few recordings show
    check_every: int = 25  # steps
    patience: int = 6  # looks at the held-out part without a better one
    seed: int = 0
    image_size: int | None = None  # pixels a side of the clips; None: those of the start


def finetune(
    file: Path,
    source: str,
    out: Path,
    recipe: FineTuneRecipe,
    say: Callable[[str], None] = log.info,
    choice: Choice = WHOLE,
) -> Path:
    """Fine-tune the model that `source` means on what `file` names; returns the folder `out`.

    `file`: of lines, or a LeRobot data set, of which `choice` says what is learnt. `say` is given
    what the user should read, line by line. Raises RecordingsError, BundleError, and VLJepaError
    for a data set that cannot be read, a size that does not fit or another training in `out`.
    """
    lightning.seed_everything(recipe.seed, verbose=False)
    base = load_base(source)
    model = resized(base.model, recipe.image_size)
    base = replace(base, model=model)
    if model.y_decoder is None:
        raise VLJepaError(f"{source} has no Y-decoder, and fine-tuning teaches it new sentences.")
    given = read(file, model.config.default_query, choice)
    recordings = Recordings(given, clip_of(model.config))
    lines = recordings.lines
    learnt, held = split(lines, recipe.seed)
    begin(out, given, base.about, recipe)
    _keep_networks(out, base)
    for sentence in recordings.left_out:
        say(sentence)
    say(summary(recordings, learnt, held))
    items = [item(recordings.cut(line, k), line) for line in held for k in recordings.looks(line)]
    asked = list(dict.fromkeys(line.asked for line in lines))
    _keep_held_out(out, items, asked)
    stage = FineTune(base, asked, learnt, recipe)
    if not (out / WEIGHTS).exists():
        _joint(stage, RecordedClips(recordings, learnt, recipe.seed), items, out, recipe, say)
        _decoder(stage, RecordedClips(recordings, learnt, recipe.seed + 1), out, recipe)
        save(model, out)
    return out


def clip_of(config: VLJepaConfig) -> ClipSpec:
    """The geometry of the clips that a model takes."""
    vision = config.x_encoder_config
    return ClipSpec(
        vision.frames_per_clip, vision.crop_size, vision.tubelet_size, float(config.sample_rate)
    )


def summary(recordings: Recordings, learnt: Sequence[Line], held: Sequence[Line]) -> str:
    """A table of what is learnt from and what is held out."""
    rows = [("", "learnt from", "held out")]
    for name, count in (
        ("recordings", lambda part: len({line.source for line in part})),
        ("segments", len),
        ("seconds", lambda part: round(sum(line.end - line.start for line in part))),
        ("clips", lambda part: sum(len(recordings.newest(line)) for line in part)),
        ("distinct answers", lambda part: len({line.asked for line in part})),
    ):
        rows.append((name, str(count(learnt)), str(count(held))))
    table = "\n".join(f"{a:<17} {b:>12} {c:>9}" for a, b, c in rows)
    return f"{table}\nframes in memory: {recordings.megabytes:.1f} MB"


class FineTune(JointStage):
    """The joint stage on recordings: their answers are each other's negatives.

    Every validation logs `retrieval`, the mean of recall at 1 from clip to text and back.
    """

    def __init__(
        self,
        base: Base,
        asked: list[tuple[str, str]],
        learnt: Sequence[Line],
        recipe: FineTuneRecipe,
    ):
        config = base.model.config
        words = _Prompted(TextTokenizer(base.y_tokenizer, config.text_length), config.text_prompt)
        sentences = Sentences(base.model.y_encoder, words)  # type: ignore[arg-type]
        queries = TextTokenizer(base.tokenizer, config.query_length)
        super().__init__(base.model, queries, sentences, recipe.rate, recipe.steps, 0.0)
        self.recipe, self.asked = recipe, asked
        self.decoder_tokens = TextTokenizer(base.tokenizer, config.text_length)
        self.canonical = list(dict.fromkeys(line.answer for line in learnt))
        self.meant = [meaning(answer) for answer in self.canonical]
        self.looks: list[tuple[Tensor, dict[str, Any]]] = []

    def contrast(
        self, predicted: Tensor, answers: list[str], meanings: list[str]
    ) -> tuple[Tensor, Tensor]:
        self.sentences.rows(self.canonical, self.meant)  # known by what they mean
        return super().contrast(predicted, answers, meanings)

    def validation_step(self, batch: dict[str, Any], _index: int) -> None:
        visual = self.model.x_encoder(batch["frames"])
        predicted = self.predict(visual, batch["queries"]).float().cpu()
        self.looks.append((predicted, batch))

    def on_validation_epoch_end(self) -> None:
        answers = [answer for _, answer in self.asked]
        rows = self.sentences.rows(answers, [meaning(answer) for answer in answers])
        with torch.autocast(self.device.type, enabled=False):
            texts = self.model.y_encoder.head(self.sentences.vectors[rows].to(self.device))
        found = by_query(
            torch.cat([predicted for predicted, _ in self.looks]).numpy(),
            [query for _, batch in self.looks for query in batch["queries"]],
            [meant for _, batch in self.looks for meant in batch["meanings"]],
            texts.float().cpu().numpy(),
            [(query, meaning(answer)) for query, answer in self.asked],
        )
        self.looks.clear()
        self.log_dict({**found, MONITOR: sum(found.values()) / 2}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        slow = {id(p) for p in self.model.x_encoder.parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in slow], "lr": self.recipe.rate},
            {"params": [p for p in trained if id(p) in slow], "lr": self.recipe.x_encoder_rate},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        warm_up = max(1, min(20, self.steps // 10))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm_up)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Prompted:
    """A tokenizer that puts the bundle's prompt around every text."""

    def __init__(self, tokenizer: TextTokenizer, prompt: str):
        self.tokenizer, self.prompt = tokenizer, prompt

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.tokenizer([self.prompt.replace("{}", text) for text in texts])


class LearntPairs(DecoderPairs):
    """Batches for the Y-decoder: predictions of clips that were learnt from, and their answers."""

    def __init__(self, stage: FineTune, clips: RecordedClips, recipe: FineTuneRecipe):
        self.batch, self.seed = recipe.decoder_batch, recipe.seed
        rng = np.random.default_rng(recipe.seed)
        predicted, self.said = [], []
        with torch.inference_mode():
            for start in range(0, recipe.decoder_clips, recipe.batch):
                count = min(recipe.batch, recipe.decoder_clips - start)
                batch = collate([clips.draw(rng) for _ in range(count)])
                visual = stage.model.x_encoder(batch["frames"].to(stage.device))
                predicted.append(stage.predict(visual, batch["queries"]).float().cpu())
                self.said += batch["answers"]
            rows = stage.sentences.rows(stage.canonical, stage.meant)
            written = stage.sentences.vectors[rows].to(stage.device)
            self.written = stage.model.y_encoder.head(written).cpu().clone()
        self.predicted = torch.cat(predicted).clone()
        self.meant = stage.canonical


def begin(out: Path, given: Given, about: dict[str, Any], recipe: Any) -> None:
    """Lay the folder out, or find that it goes on with the same lines, start and recipe.

    `about`: what is kept of the start, `from` among it; `recipe`: a dataclass.
    """
    said = {
        **asdict(recipe), "from": about["from"], "recordings": given.name, "sha256": given.sha256,
    }  # fmt: skip
    kept = out / RECIPE
    if kept.is_file() and json.loads(kept.read_text()) != said:
        raise VLJepaError(
            f"{out} holds a training on other lines, from another start, or of another recipe; "
            "give a new folder, or delete that one."
        )
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(said, indent=2) + "\n")
    (out / BASE).write_text(json.dumps(about, indent=2) + "\n")


def _keep_networks(out: Path, base: Base) -> None:
    """Keep configuration and tokenizers of what is trained."""
    base.model.config.to_json_file(str(out / CONFIG), use_diff=False)
    for name, path in (("tokenizer.json", base.tokenizer), ("y_tokenizer.json", base.y_tokenizer)):
        if path.resolve() != (out / name).resolve():
            shutil.copyfile(path, out / name)


def _keep_held_out(out: Path, items: list[dict[str, Any]], asked: list[tuple[str, str]]) -> None:
    np.savez_compressed(
        out / HELD_OUT,
        frames=np.stack([i["frames"] for i in items]),
        texts=json.dumps([[i["queries"][0], i["answers"][0]] for i in items]),
        asked=json.dumps(asked),
    )


def _joint(
    stage: FineTune, clips: RecordedClips, items: list[dict[str, Any]], out: Path,
    recipe: FineTuneRecipe, say: Callable[[str], None],
) -> None:  # fmt: skip
    folder = out / "recordings"
    if finished(stage.model, folder):
        return
    looks: DataLoader = DataLoader(items, recipe.batch, collate_fn=collate)  # type: ignore[arg-type]
    stops = stop_on_retrieval(folder, recipe.patience)
    trainer = make_trainer(folder, recipe.steps, looks=stops, every=recipe.check_every)
    if not (folder / LAST).exists():
        say(f"before: {_percent(trainer.validate(stage, looks, verbose=False)[0])}")
    clips.seed = seed_of(clips.seed, folder)
    fit(trainer, stage, DataLoader(clips, recipe.batch, collate_fn=collate), folder, looks)
    best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    stage.load_state_dict(best["state_dict"])
    after = trainer.validate(stage, looks, verbose=False)[0]
    say(f"after {best['global_step']} steps: {_percent(after)}")
    save(stage.model, folder)


def _decoder(stage: FineTune, clips: RecordedClips, out: Path, recipe: FineTuneRecipe) -> None:
    folder = out / "decoder"
    stage.model.eval()
    pairs = DataLoader(LearntPairs(stage, clips, recipe), batch_size=None)
    decoder = DecoderStage(stage.model, stage.decoder_tokens, recipe.rate, recipe.decoder_steps)
    fit(make_trainer(folder, recipe.decoder_steps), decoder, pairs, folder)


def _percent(found: Any) -> str:
    return (
        f"the right answer is nearest to {found['video_to_text']:.0%} of the held-out clips, "
        f"a right clip to {found['text_to_video']:.0%} of their answers"
    )


def is_finetuned(run: Path) -> bool:
    """Whether `run` is the folder of a fine-tuning."""
    return (run / BASE).is_file()
