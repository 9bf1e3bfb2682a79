"""The bundle: a folder with `bundle.yaml`, ONNX graphs and tokenizers (docs/bundle-format.md).

Invariant: a `Bundle` that `load_bundle` returned says what its schema asks for, and, unless
verification was turned off, every file that it lists has the content that its manifest promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vljepa_ros.errors import BundleError

from .graphs import GraphSpec, read_graph
from .locate import find_bundle
from .manifest import MANIFEST, Section, file_problem, listed_files, read_manifest

RESIZE = ("shorter_side", "squash")  # see inference.preprocess
RESAMPLE = ("area", "bilinear", "bicubic", "pil_bilinear")
REQUIRED = ("x_encoder", "predictor", "y_encoder")
PARTS = (*REQUIRED, "y_decoder")
NO_QUERY = ""  # the standing query of a bundle that has none
UNKNOWN = -1.0  # the familiarity of what a bundle cannot tell of
BUNDLE, CALIBRATION = "bundle", "calibration"  # where thresholds of a bundle came from


@dataclass(frozen=True)
class ClipSpec:
    """The geometry of a clip: `frames` square RGB pictures of `image_size` pixels.

    `sample_rate`: frames per second inside the clip; `tubelet`: frames per visual token; `chunk`:
    frames that the X-encoder takes at a time (0 becomes `frames`: the whole clip).
    """

    frames: int
    image_size: int
    tubelet: int
    sample_rate: float
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.chunk == 0:
            object.__setattr__(self, "chunk", self.frames)

    @property
    def chunks(self) -> int:
        """Chunks in a clip; 1: the X-encoder takes whole clips."""
        return self.frames // self.chunk

    @property
    def period_ns(self) -> int:
        """Nanoseconds between two frames of the clip."""
        return round(1e9 / self.sample_rate)

    @property
    def span_ns(self) -> int:
        """Nanoseconds from the oldest to the newest frame of the clip."""
        return (self.frames - 1) * self.period_ns


@dataclass(frozen=True)
class QuerySpec:
    """The query side of the predictor: default question, token count, tokenizer file."""

    default: str
    length: int
    tokenizer: Path


@dataclass(frozen=True)
class TextSpec:
    """The text side of the Y-encoder: token count, tokenizer file, prompt around each text."""

    length: int
    tokenizer: Path
    prompt: str


@dataclass(frozen=True)
class DecoderSpec:
    """The Y-decoder: longest text in tokens, tokenizer, token ids, cache geometry.

    `empty_text` is said where the decoder ends at once.
    """

    length: int
    tokenizer: Path
    begin: int
    end: int
    layers: int
    heads: int
    head_dim: int
    empty_text: str


@dataclass(frozen=True)
class PhrasesSpec:
    """A bank of phrases: a text file, one a line, and when the best one is said.

    Where its cosine is at least `cosine`, and the best phrase that means something else, i.e. whose
    cosine to it is below `same`, is at least `margin` behind.
    """

    file: Path
    cosine: float = -1.0
    margin: float = 0.0
    same: float = 0.9


@dataclass(frozen=True)
class Thresholds:
    """Calibrated thresholds.

    `gate`: the fewest grey levels 0..255 of a block mean that count as new; `change`: the Ward cost
    at which `change_score` is 1.0; `watch`: the cosine at which a standing condition holds.
    """

    gate: float
    change: float
    watch: float


@dataclass(frozen=True)
class ChangeSpec:
    """The change detector's defaults for this bundle, in steps at the clip's sample rate."""

    candidate: int
    min_segment: int
    hysteresis: float


@dataclass(frozen=True)
class FamiliaritySpec:
    """What tells how much is like what the bundle was made for (`inference.familiarity`).

    `threshold`: the familiarity, 0..1, below which nothing is put into words.
    """

    file: Path
    threshold: float


@dataclass(frozen=True)
class Bundle:
    """A model bundle, read and checked. `path` is its folder, `manifest` the YAML as it stands.

    `resize` and `resample`: how a picture becomes a square (RESIZE, RESAMPLE). `query`: None where
    the predictor is asked nothing.
    """

    path: Path
    name: str
    version: str
    model_id: str
    embedding_dim: int
    clip: ClipSpec
    resize: str
    resample: str
    query: QuerySpec | None
    y_encoder: TextSpec
    decoder: DecoderSpec | None
    phrases: PhrasesSpec | None
    templates: dict[str, str]
    temperature: float
    thresholds: Thresholds
    change: ChangeSpec
    tolerance: float
    graphs: dict[str, GraphSpec]
    familiarity: FamiliaritySpec | None
    source: dict[str, Any]
    calibration: dict[str, Any]
    evaluation: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def default_query(self) -> str:
        """The standing question where none is named; empty: the predictor is asked nothing."""
        return self.query.default if self.query is not None else NO_QUERY

    @property
    def label_template(self) -> str:
        """What is put around labels to classify by, with {} where they go."""
        return self.templates.get("classify", "{}")

    @property
    def familiarity_threshold(self) -> float:
        """The familiarity, 0..1, below which nothing is put into words; -1: it cannot tell."""
        return self.familiarity.threshold if self.familiarity is not None else UNKNOWN

    def origin_of(self, threshold: str) -> str:
        """Where `gate`, `change`, `watch` or `familiarity` came from.

        CALIBRATION: `vljepa calibrate` set it by footage; BUNDLE: it came with the bundle.
        """
        before = self.calibration.get("before")
        if not isinstance(before, dict):
            return BUNDLE
        if threshold == "familiarity":
            return CALIBRATION
        kept = before.get(threshold) == getattr(self.thresholds, threshold)
        return BUNDLE if kept else CALIBRATION

    def is_unfamiliar(self, familiarity: float) -> bool:
        """Whether what has this familiarity is not what the bundle was made for.

        False where the bundle cannot tell (-1).
        """
        return 0 <= familiarity < self.familiarity_threshold


def load_bundle(source: str | Path, verify: bool = True) -> Bundle:
    """Read the bundle in a folder, or the one that a name or Hub id means (`find_bundle`).

    With `verify` every listed file's sha256 is checked. Raises BundleError, which names the file.
    """
    folder = source if isinstance(source, Path) else find_bundle(source)
    manifest, digest = read_manifest(folder)
    bundle = parse(folder, manifest, digest)
    if verify:
        problems = file_problems(bundle)
        if problems:
            more = f" ({len(problems) - 1} more problems.)" if len(problems) > 1 else ""
            raise BundleError(problems[0] + more)
    return bundle


def tokenizers(bundle: Bundle) -> list[tuple[Path, int]]:
    """File and length of the bundle's tokenizers."""
    specs = (bundle.query, bundle.y_encoder, bundle.decoder)
    return [(spec.tokenizer, spec.length) for spec in specs if spec is not None]


def file_problems(bundle: Bundle) -> list[str]:
    """A sentence for each file that is missing, altered, or used and not listed."""
    file = bundle.path / MANIFEST
    listed = dict(listed_files(bundle.manifest, file))
    problems = [p for p in (file_problem(*item) for item in listed.items()) if p]
    # What is not listed goes unchecked; a graph may keep its weights in a file beside it.
    used = [tokenizer for tokenizer, _ in tokenizers(bundle)]
    if bundle.familiarity is not None:
        used.append(bundle.familiarity.file)
    if bundle.phrases is not None:
        used.append(bundle.phrases.file)
    for pattern in ("*.onnx*", "*.data"):
        used += sorted(bundle.path.rglob(pattern))
    problems += [
        f"{extra} is not listed in {file}; list it under 'files' or take it away."
        for extra in used
        if extra not in listed
    ]
    return list(dict.fromkeys(problems))


def parse(folder: Path, manifest: dict[str, Any], digest: str) -> Bundle:
    """The bundle that a manifest describes; its files are not looked at. Raises BundleError."""
    root = Section(manifest, folder / MANIFEST)
    name, version = root.get("name", str), root.get("version", str)
    clip, y_encoder, query = root.section("clip"), root.section("y_encoder"), _query(root)
    thresholds, change = root.section("thresholds"), root.section("change")
    graphs, templates = root.section("graphs"), root.optional("templates")
    tolerance = root.section("tolerance").positive("cosine", float)
    bundle = Bundle(
        path=folder,
        name=name,
        version=version,
        model_id=f"{name}-{version}#{digest[:8]}",
        embedding_dim=root.positive("embedding_dim", int),
        clip=ClipSpec(
            clip.positive("frames", int),
            clip.positive("image_size", int),
            clip.positive("tubelet", int),
            clip.positive("sample_rate", float),
            clip.positive("chunk", int) if "chunk" in clip.values else 0,
        ),
        resize=_resize(root.section("preprocess")),
        resample=_one_of(root.section("preprocess"), "resample", RESAMPLE, "area"),
        query=query,
        y_encoder=TextSpec(
            y_encoder.positive("length", int),
            y_encoder.inside("tokenizer"),
            y_encoder.template("prompt", "{}"),
        ),
        decoder=_decoder(root.section("decoder")) if "y_decoder" in graphs.values else None,
        phrases=_phrases(root.section("phrases")) if "phrases" in root.values else None,
        templates={key: templates.template(key) for key in templates.values},
        temperature=root.positive("temperature", float),
        thresholds=Thresholds(
            thresholds.positive("gate", float),
            thresholds.positive("change", float),
            thresholds.get("watch", float),
        ),
        change=ChangeSpec(
            change.positive("candidate", int),
            change.positive("min_segment", int),
            change.positive("hysteresis", float),
        ),
        tolerance=tolerance,
        graphs={
            key: read_graph(graphs.section(key), key, _longest(root), tolerance, query is not None)
            for key in graphs.values
        },
        familiarity=_familiarity(root),
        source=root.optional("source").values,
        calibration=root.optional("calibration").values,
        evaluation=root.optional("evaluation").values,
        manifest=manifest,
    )
    _check_geometry(bundle)
    return bundle


def _resize(section: Section) -> str:
    """How the manifest has a picture become a square; only a shorter side leaves what to crop."""
    resize = _one_of(section, "resize", RESIZE)
    if resize == "shorter_side" and section.get("crop", str) != "centre":
        raise BundleError(
            f"{section.file}: 'preprocess.crop' is {section.values['crop']!r}, and only 'centre' "
            "is supported."
        )
    return resize


def _one_of(section: Section, key: str, known: tuple[str, ...], default: str | None = None) -> str:
    value = section.get(key, str, default)
    if value not in known:
        raise BundleError(
            f"{section.file}: '{section.where}.{key}' is '{value}'; use one of {', '.join(known)}."
        )
    return value


def _query(root: Section) -> QuerySpec | None:
    if "query" not in root.values:
        return None
    section = root.section("query")
    return QuerySpec(
        section.get("default", str), section.positive("length", int), section.inside("tokenizer")
    )


def _decoder(section: Section) -> DecoderSpec:
    return DecoderSpec(
        section.positive("length", int),
        section.inside("tokenizer"),
        section.get("begin", int),
        section.get("end", int),
        section.positive("layers", int),
        section.positive("heads", int),
        section.positive("head_dim", int),
        section.get("empty_text", str, ""),
    )


def _familiarity(root: Section) -> FamiliaritySpec | None:
    if "familiarity" not in root.values:
        return None
    section = root.section("familiarity")
    threshold = section.positive("threshold", float)
    if threshold >= 1:
        raise BundleError(
            f"{section.file}: 'familiarity.threshold' must be below 1, not {threshold}."
        )
    return FamiliaritySpec(section.inside("file"), threshold)


def _phrases(section: Section) -> PhrasesSpec:
    usual = PhrasesSpec(section.inside("file"))
    return PhrasesSpec(
        usual.file,
        section.get("cosine", float, usual.cosine),
        section.get("margin", float, usual.margin),
        section.get("same", float, usual.same),
    )


def _longest(root: Section) -> dict[str, int]:
    """The largest value of each open size that counts tokens."""
    return {
        size: root.section(name).positive("length", int)
        for size, name in (("L", "query"), ("S", "decoder"))
        if name in root.values
    }


def _check_geometry(bundle: Bundle) -> None:
    """The sizes that the manifest gives twice must agree, and the required graphs be there."""
    file = bundle.path / MANIFEST
    for name in REQUIRED:
        if name not in bundle.graphs:
            raise BundleError(f"{file}: the graph '{name}' is missing.")
    clip, dim, size = bundle.clip, bundle.embedding_dim, bundle.clip.image_size
    for whole, part, what in (
        (clip.frames, clip.chunk, "clip frames do not divide into chunks"),
        (clip.frames, clip.tubelet, "clip frames do not divide into tubelets"),
        (clip.chunk, clip.tubelet, "frames of a chunk do not divide into tubelets"),
    ):
        if whole % part:
            raise BundleError(f"{file}: {whole} {what} of {part}.")
    tokens, width = bundle.graphs["x_encoder"].outputs["visual_tokens"].shape[1:]
    wanted: list[tuple[str, str, tuple[int | None, ...]]] = [
        ("x_encoder", "frames", (None, clip.chunk, size, size, 3)),
        ("predictor", "visual_tokens", (
            None,
            tokens * clip.chunks if isinstance(tokens, int) else None,
            width if isinstance(width, int) else None,
        )),
        ("y_encoder", "ids", (None, bundle.y_encoder.length)),
        ("y_encoder", "mask", (None, bundle.y_encoder.length)),
        ("y_encoder", "embedding", (None, dim)),
    ]  # fmt: skip
    if bundle.query is None:
        wanted.append(("predictor", "embedding", (None, 1, dim)))
    else:
        wanted += [
            ("predictor", "query_ids", (None, bundle.query.length)),
            ("predictor", "query_mask", (None, bundle.query.length)),
            ("predictor", "embedding", (None, None, dim)),
        ]
    if bundle.decoder is not None:
        cache = (2 * bundle.decoder.layers, None, bundle.decoder.heads, None)
        wanted += [
            ("y_decoder", "embedding", (None, dim)),
            ("y_decoder", "past", (*cache, bundle.decoder.head_dim)),
            ("y_decoder", "present", (*cache, bundle.decoder.head_dim)),
        ]
    for name, tensor, sizes in wanted:
        graph = bundle.graphs[name]
        shape = (graph.inputs.get(tensor) or graph.outputs[tensor]).shape
        for found, size_wanted in zip(shape, sizes, strict=True):
            if isinstance(found, int) and size_wanted is not None and found != size_wanted:
                raise BundleError(
                    f"{file}: the shape of '{tensor}' of '{name}' is {list(shape)}, and the "
                    f"manifest's other sections ask for {size_wanted} where it has {found}."
                )
