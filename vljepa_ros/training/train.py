"""From episodes to a trained checkpoint, stage by stage.

From nothing the stages are texts, images, video, decoder; from another model on heads, video,
decoder: what a bundle does not hold, the head of the state loss and the temperature, is fitted to
its frozen networks first, and its Y-encoder stays as it is: texts lie where they lay.

Invariant: an interrupted training goes on where it stopped: a finished stage is not run again.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.config import CONFIG, VLJepaConfig, tabletop
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import language, store
from vljepa_ros.tabletop.clips import ClipDataset, ClipShape, collate

from .base import RECIPE, Base, rearranged, resized
from .loop import finished, fit, make_trainer, rank, save, seed_of
from .stages import DecoderStage, JointStage, TextStage
from .texts import Sentences, corpus, fit_head, mix, sentence_encoder_folder, train_tokenizer

DECODER_CHUNK = 40  # clips encoded at a time


@dataclass(frozen=True)
class Recipe:
    """How long and with what each stage is trained. Rates are AdamW's peak learning rates."""

    text_steps: int = 300
    image_steps: int = 1000
    head_steps: int = 100
    video_steps: int = 2000
    decoder_steps: int = 400
    text_batch: int = 64
    image_batch: int = 96
    video_batch: int = 40
    video_stills: int = 68  # stills in a batch of video: shapes are learnt from those
    decoder_batch: int = 256
    decoder_clips: int = 4000
    text_rate: float = 1e-4  # 0.1 of the rate of the rest; the paper has 0.05, all along
    rate: float = 1e-3
    head_rate: float = 1e-2
    video_rate: float = 6e-4
    further_rate: float = 3e-4  # of the video stage where a model is trained further
    image_state_weight: float = 1.0
    video_state_weight: float = 0.5
    seed: int = 0
    devices: int = 1
    workers: int = 1  # processes that cut clips; 0: in the training process
    # None, of the following: the start's, or the preset's.
    image_size: int | None = None  # pixels a side of the clips
    chunk: int | None = None  # frames that the X-encoder looks at together
    predictor_layers: int | None = None


def train(data: Path, out: Path, recipe: Recipe, base: Base | None = None) -> Path:
    """Train the tabletop model on the episodes in `data`/train; returns the checkpoint folder.

    It goes on from `base`, or begins from nothing. `out` gets `config.json`, `tokenizer.json`,
    `recipe.json`, one folder a stage, and at the end `weights.safetensors` of the whole model.
    Raises VLJepaError where `out` holds a training that began otherwise, or the size does not fit.
    """
    lightning.seed_everything(recipe.seed, verbose=False)
    torch.set_flush_denormal(True)  # the smallest gradients of a softmax are slow on a CPU
    counts = {split: len(store.episode_paths(data, split)) for split in ("stills", "train")}
    said = {**asdict(recipe), "episodes": counts}
    if base is not None:
        said |= {"from": base.about["from"], "before": base.about.get("source", {}).get("recipe")}
    _check_begun(out, said)
    tokenizer = out / "tokenizer.json"
    start = _from_nothing(tokenizer) if base is None else _taken_up(base, tokenizer)
    start = resized(start, recipe.image_size)
    model = rearranged(start, recipe.chunk, recipe.predictor_layers)
    if rank() == 0:
        model.config.to_json_file(str(out / CONFIG), use_diff=False)
        (out / RECIPE).write_text(json.dumps(said, indent=2) + "\n")
    if base is None:
        _text_stage(model, out, recipe)
    teacher = None
    if base is not None and start is base.model and model.config.chunk < start.config.chunk:
        teacher = start  # of what the smaller chunks take away
    for name in ("images" if base is None else "heads", "video"):
        _joint_stage(name, model, data, out, recipe, base is not None, teacher)
    _decoder_stage(model, data, out, recipe)
    save(model, out)
    return out


def _check_begun(out: Path, said: dict[str, Any]) -> None:
    """VLJepaError where the training in `out` began otherwise than what its recipe says."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECIPE).is_file():
        return
    begun, start = _beginning(json.loads((out / RECIPE).read_text())), _beginning(said)
    if begun != start:
        raise VLJepaError(
            f"{out} holds a training that began from {begun}, and this one would from {start}: "
            "give another folder, or the same --from, --size, --chunk and --predictor-layers as "
            "before."
        )


def _beginning(recipe: dict[str, Any]) -> str:
    said = recipe.get("from") or "nothing"
    for name, words in (
        ("image_size", "at {} px"), ("chunk", "in chunks of {}"),
        ("predictor_layers", "with {} layers in the predictor"),
    ):  # fmt: skip
        if recipe.get(name):
            said += " " + words.format(recipe[name])
    return said


def _from_nothing(tokenizer: Path) -> VLJepa:
    if not tokenizer.exists():  # with several devices the first process is here before the others
        train_tokenizer(corpus(), 2048, tokenizer)
    return build(tokenizer)


def _taken_up(base: Base, tokenizer: Path) -> VLJepa:
    """The model of `base`; VLJepaError where it cannot read or say what the episodes tell."""
    ours = sentence_encoder_folder() / "tokenizer.json"
    if base.model.y_decoder is None or base.y_tokenizer.read_bytes() != ours.read_bytes():
        raise VLJepaError(
            f"{base.about['from']} cannot learn from the simulated table: that takes a Y-decoder "
            "and all-MiniLM-L6-v2 as sentence encoder; start from `tabletop`, or from nothing."
        )
    if not tokenizer.exists():
        shutil.copyfile(base.tokenizer, tokenizer)
    return base.model


def build(tokenizer: Path) -> VLJepa:
    """The tabletop model, its Y-encoder with MiniLM's weights and all else at random."""
    from tokenizers import Tokenizer

    model = VLJepa(tabletop(Tokenizer.from_file(str(tokenizer)).get_vocab_size()))
    state = load_file(sentence_encoder_folder() / "model.safetensors")
    missing, unexpected = model.y_encoder.model.load_state_dict(state, strict=False)
    unexpected = [key for key in unexpected if key != "embeddings.position_ids"]
    if missing or unexpected:
        raise ValueError(f"the sentence encoder lacks {missing} and has {unexpected} too many")
    model.y_encoder.model.eval()
    return model


def sentences_of(model: VLJepa) -> Sentences:
    """An empty store of sentence vectors for this model."""
    tokenizer = sentence_encoder_folder() / "tokenizer.json"
    return Sentences(model.y_encoder, TextTokenizer(tokenizer, model.config.text_length))


def clip_shape(config: VLJepaConfig, image: bool = False) -> ClipShape:
    """The geometry of a clip, or of the one tubelet that an image becomes."""
    vision = config.x_encoder_config
    frames = vision.tubelet_size if image else vision.frames_per_clip
    side = vision.crop_size // vision.patch_size
    return ClipShape(frames, vision.tubelet_size, side, vision.crop_size)


def _joint_stage(
    name: str, model: VLJepa, data: Path, out: Path, recipe: Recipe, further: bool,
    teacher: VLJepa | None,
) -> None:  # fmt: skip
    """The stage "images", "heads" (of frozen networks) or "video"; `further`: from a model on.

    `teacher`, if there is one, teaches the stage "video".
    """
    folder, image = out / name, name == "images"
    if finished(model, folder):
        return
    rate, steps = {
        "images": (recipe.rate, recipe.image_steps),
        "heads": (recipe.head_rate, recipe.head_steps),
        "video": (recipe.further_rate if further else recipe.video_rate, recipe.video_steps),
    }[name]
    stage = JointStage(
        model, TextTokenizer(out / "tokenizer.json", model.config.query_length),
        sentences_of(model), rate, steps,
        recipe.image_state_weight if image else recipe.video_state_weight,
        teacher if name == "video" else None,
    )  # fmt: skip
    state_head = stage.state_head
    assert state_head is not None  # the table's truth has a weight
    if name == "heads":
        model.requires_grad_(False)
    if further:
        model.y_encoder.requires_grad_(False)
    if name == "video":
        before = out / ("heads" if further else "images")
        heads = torch.load(before / "heads.pt", weights_only=True)
        state_head.load_state_dict(heads["state_head"])
        stage.log_temperature.data = heads["log_temperature"]
    seed = seed_of(recipe.seed, folder)

    def loader(still: bool, batch: int) -> DataLoader:
        clips = ClipDataset(data, clip_shape(model.config, still), seed + still, still)
        return DataLoader(
            clips, batch, num_workers=recipe.workers, collate_fn=collate,
            multiprocessing_context="spawn" if recipe.workers else None,
        )  # fmt: skip

    loaders: Any = loader(True, recipe.image_batch)
    if not image:
        loaders = {
            "video": loader(False, recipe.video_batch),
            "stills": loader(True, recipe.video_stills),
        }
    fit(make_trainer(folder, steps, recipe.devices), stage, loaders, folder)
    heads = {"state_head": state_head.state_dict(),
             "log_temperature": stage.log_temperature.data}  # fmt: skip
    part = folder / f".heads{rank()}.pt"  # every process reads it in the next stage
    torch.save(heads, part)
    part.replace(folder / "heads.pt")
    if name == "video" and not further:  # the predictor's embeddings stay where they are now
        fit_head(sentences_of(model), recipe.seed)  # new vectors: the same in every process
    save(model, folder)


def _decoder_stage(model: VLJepa, data: Path, out: Path, recipe: Recipe) -> None:
    folder = out / "decoder"
    if finished(model, folder):
        return
    pairs = DecoderPairs(model, data, out, recipe)
    loader = DataLoader(pairs, batch_size=None)
    tokenizer = TextTokenizer(out / "tokenizer.json", model.config.text_length)
    stage = DecoderStage(model, tokenizer, recipe.rate, recipe.decoder_steps)
    fit(make_trainer(folder, recipe.decoder_steps, recipe.devices), stage, loader, folder)
    save(model, folder)


def _text_stage(model: VLJepa, out: Path, recipe: Recipe) -> None:
    folder = out / "texts"
    if finished(model, folder):
        return
    words = sentences_of(model).tokenizer
    pre_trained = copy.deepcopy(model.y_encoder.model.state_dict())
    stage = TextStage(model, words, recipe.text_rate, recipe.text_steps)
    wordings = Wordings(recipe.text_batch, seed_of(recipe.seed, folder))
    loader = DataLoader(wordings, batch_size=None)
    fit(make_trainer(folder, recipe.text_steps, recipe.devices), stage, loader, folder)
    mix(model.y_encoder.model, pre_trained)
    save(model, folder)


class Wordings(IterableDataset):
    """Endless batches of texts and their meanings, other ones in every process."""

    def __init__(self, batch: int, seed: int):
        self.batch, self.seed = batch, seed

    def __iter__(self) -> Iterator[tuple[list[str], list[str]]]:
        rng = np.random.default_rng([self.seed, rank()])
        while True:
            pairs = [language.draw_wording(rng) for _ in range(self.batch)]
            yield [text for text, _ in pairs], [meaning for _, meaning in pairs]


class DecoderPairs(IterableDataset):
    """Endless batches of embeddings `[B, D]` and the texts that they should become.

    Half are embeddings of texts with noise (what paraphrases mean is said in canonical words),
    half are what the finished predictor makes of training clips.
    """

    def __init__(self, model: VLJepa, data: Path, out: Path, recipe: Recipe):
        self.batch, self.seed = recipe.decoder_batch, recipe.seed + 7919 * rank()
        sentences = sentences_of(model)
        stage = JointStage(
            model, TextTokenizer(out / "tokenizer.json", model.config.query_length), sentences,
            0.0, 1, 0.0,
        )  # fmt: skip
        clips = iter(ClipDataset(data, clip_shape(model.config), self.seed + 1))
        predicted, self.said = [], []
        texts: dict[str, str] = {}
        with torch.inference_mode():
            for start in range(0, recipe.decoder_clips, DECODER_CHUNK):
                count = min(DECODER_CHUNK, recipe.decoder_clips - start)
                batch = collate([next(clips) for _ in range(count)])
                visual = model.x_encoder(batch["frames"])
                predicted.append(stage.predict(visual, batch["queries"]))
                self.said += batch["meanings"]
                texts.update(zip(batch["answers"], batch["meanings"], strict=True))
            texts.update(_wordings())
            rows = sentences.rows(list(texts), list(texts.values()))
            self.written = model.y_encoder.head(sentences.vectors[rows]).clone()
        self.predicted = torch.cat(predicted).clone()
        self.meant = list(texts.values())

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        rng = np.random.default_rng(self.seed)
        while True:
            half = self.batch // 2
            seen = rng.integers(len(self.said), size=half)
            read = rng.integers(len(self.meant), size=half)
            noise = torch.from_numpy(rng.normal(0, 0.02, (half, self.written.shape[1])))
            noisy = torch.nn.functional.normalize(self.written[read] + noise.float(), dim=-1)
            embeddings = torch.cat([self.predicted[seen], noisy])
            yield embeddings, [self.said[i] for i in seen] + [self.meant[i] for i in read]


def _wordings() -> dict[str, str]:
    """Every wording of every event, and what it means in canonical words."""
    wordings = {}
    for colour, shape in itertools.product(language.COLOURS, language.SHAPES):
        for forms in language.TEMPLATES.values():
            said = [form.format(object=f"the {colour} {shape}") for form in forms]
            wordings.update(dict.fromkeys(said, said[0]))
    return wordings
