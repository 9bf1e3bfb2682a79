"""`vljepa data` and `train`: from nothing to a model, on a workstation with torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from vljepa_ros.console import console, notice
from vljepa_ros.errors import VLJepaError, needing
from vljepa_ros.workers.choice import open_pool

from ..times import finite
from ..usage import RAY
from .kinds import refuse_others

if TYPE_CHECKING:
    from vljepa_ros.training.lines import Choice

DATA = typer.Option(None, help="The folder of the episodes; by default one in the user's cache.")
TRAINING = typer.Argument(..., help="The folder of the training; an interrupted one goes on.")
RECORDINGS = typer.Option(
    None, "--data",
    help="Fine-tune on the recordings in this JSONL file, or on a LeRobot data set (folder or Hub "
    "id): docs/fine-tuning.md.",
)  # fmt: skip
CAMERA = typer.Option("", help="Of a data set: the camera's key, or the end of it.")
EPISODES = typer.Option("", help="Of a data set: which episodes, e.g. 0:50. Default: all.")
TASKS = typer.Option(
    False, "--tasks", help="Of a data set: learn each episode's task, not its timed subtasks."
)
BASE = typer.Option(
    None, "--from",
    help="The start: a bundle (folder, name or Hub id) or a finished training. With --data it is "
    "tabletop if you name none; without, all is trained from nothing.",
)  # fmt: skip
WORDS = typer.Option(
    None, "--words",
    help="The Y-encoder alone learns more words, from the WordNet in this folder (Debian's package "
    "wordnet-base: /usr/share/wordnet): docs/model.md.",
)  # fmt: skip
SIZE = typer.Option(
    None, min=1, help="Pixels a side of the clips; by default those of the start, or tabletop's."
)
CHUNK = typer.Option(
    None, min=1,
    help="Frames that the X-encoder looks at together, e.g. 2: on the robot each such chunk is "
    "encoded once. By default as in the start, or the whole clip.",
)  # fmt: skip
LAYERS = typer.Option(
    None, "--predictor-layers", min=1,
    help="Layers of the predictor; those that the start lacks change nothing at first.",
)  # fmt: skip
WORKERS = typer.Option(
    None, min=1,
    help="Processes, by default 2. On a cluster: actors, by default one for each of its CPUs.",
)  # fmt: skip
STEPS = typer.Option(
    None, min=1, help="With --data: steps at most, by default 400; with --words: 160."
)
SPLIT = typer.Option("train", help="train, stills, stream, test or composition; or video.")
SECONDS = typer.Option(
    None, min=0.25, callback=finite,
    help="Length of an episode, by default 30; of the video, by default 90.",
)  # fmt: skip


def data(
    split: str = SPLIT,
    episodes: int = typer.Option(2000, min=1, help="How many episodes there shall be."),
    seconds: Optional[float] = SECONDS,
    start: int = typer.Option(0, min=0, help="The first one's number: each has its own scene."),
    folder: Path = DATA,
    workers: Optional[int] = WORKERS,
    ray: Optional[str] = RAY,
) -> None:
    """Simulate episodes of the table for training; those that are there already are kept.

    `--split video --folder videos` draws the video that is shipped again: FOLDER/tabletop.mp4, its
    truth beside it as .json, and questions about it as .jsonl.
    """
    with needing("train"):
        from vljepa_ros.tabletop import store
        from vljepa_ros.tabletop.episode import SECONDS as OF_EPISODE
        from vljepa_ros.tabletop.sim.generate import generate
        from vljepa_ros.tabletop.sim.video import SHIPPED, SHIPPED_SECONDS, render

    root = folder or store.default_root()
    if split == "video":
        video = root / "tabletop.mp4"
        render(SHIPPED, seconds or SHIPPED_SECONDS, video)
        console.print(f"{video}")
        return
    count = workers or (2 if ray is None else 0)
    generate(
        root, split, episodes, seconds or OF_EPISODE, start,
        lambda opening: open_pool(opening, count, ray), notice,
    )  # fmt: skip


TABLE = {"folder", "video", "decoder", "devices", "size", "chunk", "layers"}
TRAININGS = {  # what each can be told, beside what all can
    "with --words": {"words", "steps"},
    "with --data": {"recordings", "camera", "episodes", "tasks", "size", "steps"},
    "on the table with --from": TABLE,
    "on the table from nothing": {*TABLE, "images"},
}
ALL = {"out", "base", "seed", "threads"}


def train(
    context: typer.Context,
    out: Path = TRAINING,
    folder: Path = DATA,
    images: int = typer.Option(1000, min=1, help="Steps of the image stage."),
    video: int = typer.Option(2000, min=1, help="Steps of the video stage."),
    decoder: int = typer.Option(400, min=1, help="Steps of the decoder."),
    devices: int = typer.Option(1, min=1, help="Processes, or GPUs, that train together."),
    seed: int = typer.Option(0, help="Seed of weights and batches."),
    threads: int = typer.Option(0, min=0, help="Threads of one process; 0: torch's choice."),
    recordings: Optional[Path] = RECORDINGS,
    camera: str = CAMERA,
    episodes: str = EPISODES,
    tasks: bool = TASKS,
    base: Optional[str] = BASE,
    size: Optional[int] = SIZE,
    chunk: Optional[int] = CHUNK,
    layers: Optional[int] = LAYERS,
    words: Optional[Path] = WORDS,
    steps: Optional[int] = STEPS,
) -> None:
    """Train the tabletop model on simulated episodes, or fine-tune a model on your recordings.

    With --words the Y-encoder alone learns, from texts.
    """
    kind = f"on the table {'with --from' if base else 'from nothing'}"
    if words is not None or recordings is not None:
        kind = "with --data" if words is None else "with --words"
    refuse_others(context, "a training", TRAININGS, ALL, kind)
    with needing("train"):
        from vljepa_ros.tabletop import store
        from vljepa_ros.training.base import load_base
        from vljepa_ros.training.lines import Choice
        from vljepa_ros.training.loop import use_threads
        from vljepa_ros.training.train import Recipe
        from vljepa_ros.training.train import train as run

    # Lightning tells of devices that there are not, and of services that it would log to.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec", module="lightning")
    if threads:
        use_threads(threads)
    choice = Choice(camera, episodes, tasks)
    if words is not None:
        _words(words, base or "tabletop", out, steps, seed)
        return
    if recordings is not None:
        _finetune(recordings, choice, base or "tabletop", out, steps, seed, size)
        return
    recipe = Recipe(
        image_steps=images, video_steps=video, decoder_steps=decoder, seed=seed, devices=devices,
        image_size=size, chunk=chunk, predictor_layers=layers,
    )  # fmt: skip
    start = load_base(base) if base else None
    console.print(f"trained: {run(folder or store.default_root(), out, recipe, start)}")


def _words(folder: Path, base: str, out: Path, steps: int | None, seed: int) -> None:
    from vljepa_ros.training.base import load_base
    from vljepa_ros.training.words.learn import WordRecipe, learn_words

    recipe = WordRecipe(steps=steps or WordRecipe.steps, seed=seed)
    console.print(f"trained: {learn_words(load_base(base), folder, out, recipe, console.print)}")


def _finetune(
    recordings: Path,
    choice: Choice,
    base: str,
    out: Path,
    steps: int | None,
    seed: int,
    size: int | None,
) -> None:
    from vljepa_ros.training.finetune import FineTuneRecipe, finetune
    from vljepa_ros.training.site.learn import SiteRecipe, is_of_images, learn

    if is_of_images(base):
        if size is not None:
            raise VLJepaError(f"{base} takes pictures of one size, as it is; leave out --size.")
        of_site = SiteRecipe(steps=steps or SiteRecipe.steps, seed=seed)
        made = learn(recordings, base, out, of_site, console.print, choice)
    else:
        recipe = FineTuneRecipe(steps=steps or FineTuneRecipe.steps, seed=seed, image_size=size)
        made = finetune(recordings, base, out, recipe, console.print, choice)
    console.print(f"fine-tuned: {made}\nnext: vljepa export {made} BUNDLE")
