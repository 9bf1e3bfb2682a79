"""The graphs of a bundle: what their tensors are, how large they may be, in which precisions.

Invariant: a `GraphSpec` that was read from a manifest has the inputs and outputs that the graph of
its name must have, and a profile for every open size of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from vljepa_ros.errors import BundleError

from .manifest import Section, shown

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "int8", "bool")

# Inputs and outputs by graph, as (name, dtype, number of dimensions).
GRAPHS: dict[str, tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]]] = {
    "x_encoder": ([("frames", "uint8", 5)], [("visual_tokens", "float32", 3)]),
    "predictor": (
        [("visual_tokens", "float32", 3), ("query_ids", "int64", 2), ("query_mask", "int64", 2)],
        [("embedding", "float32", 3)],
    ),
    "y_encoder": ([("ids", "int64", 2), ("mask", "int64", 2)], [("embedding", "float32", 2)]),
    "y_decoder": (
        [("embedding", "float32", 2), ("ids", "int64", 2), ("past", "float32", 5)],
        [("logits", "float32", 2), ("present", "float32", 5)],
    ),
}
# What an open size is taken to be where the manifest has no profile: least, usual, most.
PROFILE = {"B": (1, 1, 8), "Q": (1, 1, 16)}
BATCHES = {"y_encoder": (1, 1, 32)}  # texts; of the other graphs' B: clips or embeddings
VARIANTS = ("int8", "fp8")
QUERY = ("query_ids", "query_mask")  # the predictor's inputs that a bundle without a query lacks


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: NumPy dtype name; a string in the shape is any size."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Variant:
    """A graph in another precision, with the same inputs and outputs.

    `cosine`: the least to the base graph, over the clips that it was made with.
    """

    path: Path
    sha256: str
    cosine: float


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph of a bundle.

    `profile`: the least, usual and largest value of every open size of the inputs, which engines
    for a GPU are built for. `variants` by precision. `tolerance`: the least cosine between what an
    engine gives and what the base graph gives on the CPU.
    """

    name: str
    path: Path
    sha256: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    profile: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    tolerance: float = 0.999

    def at(self, precision: str) -> GraphSpec:
        """The graph as its variant in that precision has it; KeyError where there is none."""
        variant = self.variants[precision]
        return replace(self, path=variant.path, sha256=variant.sha256)


def read_graph(
    section: Section, name: str, longest: dict[str, int], tolerance: float, query: bool
) -> GraphSpec:
    """A graph of the manifest. `longest`: the largest value of each open size that counts tokens.

    `query`: whether the manifest has a section 'query'. Raises BundleError where the section does
    not describe a graph of that name.
    """
    if name not in GRAPHS:
        raise BundleError(
            f"{section.file}: unknown graph '{name}'; graphs are {', '.join(GRAPHS)}."
        )
    inputs, outputs = (
        {key: _tensor(section.section(side).section(key)) for key in section.section(side).values}
        for side in ("inputs", "outputs")
    )
    taken = [one for one in GRAPHS[name][0] if query or one[0] not in QUERY]
    if name == "predictor":
        _check_query(section, inputs, query)
    for side, specs, wanted in (("inputs", inputs, taken),
                                ("outputs", outputs, GRAPHS[name][1])):  # fmt: skip
        found = [(key, spec.dtype, len(spec.shape)) for key, spec in specs.items()]
        if sorted(found) != sorted(wanted):
            raise BundleError(
                f"{section.file}: 'graphs.{name}.{side}' must be (name, dtype, dimensions) "
                f"{wanted}, not {found}."
            )
    return GraphSpec(
        name, section.inside("file"), section.get("sha256", str), inputs, outputs,
        _profile(section, name, inputs, longest), _variants(section), tolerance,
    )  # fmt: skip


def _check_query(section: Section, inputs: dict[str, TensorSpec], query: bool) -> None:
    """BundleError where only one of predictor and manifest knows of a query."""
    takes = [key for key in QUERY if key in inputs]
    if takes and not query:
        raise BundleError(
            f"{section.file}: the predictor takes {' and '.join(map(repr, takes))}, and there is "
            "no section 'query'; add one with default, length and tokenizer."
        )
    if query and not takes:
        raise BundleError(
            f"{section.file}: there is a section 'query', and the predictor takes neither "
            f"{' nor '.join(map(repr, QUERY))} ('graphs.predictor.inputs'); take the section away, "
            "or export a predictor that is asked."
        )


def default_profile(
    name: str, inputs: dict[str, TensorSpec], longest: dict[str, int]
) -> dict[str, tuple[int, int, int]]:
    """A profile for every open size of a graph's inputs; `longest` as in `read_graph`."""
    profile = {}
    for size in dict.fromkeys(d for t in inputs.values() for d in t.shape if isinstance(d, str)):
        if size in longest:
            least = 0 if size == "S" else 1  # the decoder's cache is empty at first
            profile[size] = (least, max(1, longest[size] // 2), longest[size])
        else:
            default = BATCHES.get(name) if size == "B" else None
            profile[size] = default or PROFILE.get(size, (1, 1, 1))
    return profile


def _profile(
    section: Section, name: str, inputs: dict[str, TensorSpec], longest: dict[str, int]
) -> dict[str, tuple[int, int, int]]:
    """The profile of a graph, whole: with the defaults of what the manifest does not say."""
    profile = default_profile(name, inputs, longest)
    if "profile" not in section.values:
        return profile
    given = section.section("profile")
    for size in [size for size in profile if size in given.values]:
        bounds = given.get(size, list)
        ordered = len(bounds) == 3 and all(type(b) is int and b >= 0 for b in bounds)
        if not ordered or sorted(bounds) != bounds or bounds[2] == 0:
            raise BundleError(
                f"{section.file}: '{section.where}.profile.{size}' must be the least, usual and "
                f"largest size, e.g. [1, 1, 8], not {shown(bounds)}."
            )
        profile[size] = (bounds[0], bounds[1], bounds[2])
    return profile


def _variants(section: Section) -> dict[str, Variant]:
    if "variants" not in section.values:
        return {}
    variants = section.section("variants")
    found = {}
    for precision in variants.values:
        if precision not in VARIANTS:
            raise BundleError(
                f"{section.file}: '{variants.where}.{precision}' is no variant; variants are "
                f"{', '.join(VARIANTS)}."
            )
        one = variants.section(precision)
        found[precision] = Variant(
            one.inside("file"), one.get("sha256", str), one.positive("cosine", float)
        )
    return found


def _tensor(section: Section) -> TensorSpec:
    dtype, shape = section.get("dtype", str), section.get("shape", list)
    if dtype not in DTYPES:
        raise BundleError(
            f"{section.file}: '{section.where}.dtype' is '{dtype}'; use one of {', '.join(DTYPES)}."
        )
    if not all(isinstance(d, str) or (type(d) is int and d > 0) for d in shape):
        raise BundleError(
            f"{section.file}: '{section.where}.shape' must hold sizes above 0 or names, "
            f"not {shown(shape)}."
        )
    return TensorSpec(dtype, tuple(shape))
