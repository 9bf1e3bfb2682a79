"""Every graph of every preset through TensorRT for RTX, which builds engines without a GPU.

The shipped bundle as it is; of the two large presets one layer of each kind in full width, with
fewer words than they know: the X-encoder and the predictor are the same in both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.trt import library
from vljepa_ros.inference.trt.build import ANY_GPU, Request, build
from vljepa_ros.inference.trt.plan import profile_shapes
from vljepa_ros.inference.trt.typed import TYPED, typed_graph
from vljepa_ros.model.config import PRESETS, VLJepaConfig
from vljepa_ros.model.export.bundle import _y_decoder_inputs, export_graph, predictor_inputs
from vljepa_ros.model.export.quantise import add_fp8
from vljepa_ros.model.networks import Predictor, XEncoder, YDecoder, YEncoder

RTX = "tensorrt_rtx"
missing = library.library_missing(RTX)
pytestmark = pytest.mark.skipif(
    missing is not None,
    reason=f"{missing and missing[0]}: scripts/requirements/test.txt has it for x86-64 only, as "
    "NVIDIA does",
)

BUNDLE = load_bundle("tabletop")
ATTENTION = b"_gemm_mha"  # what TensorRT for RTX 1.7 calls an attention in one kernel
WORDS = 500
PROFILE = {"B": (1, 1, 2), "Q": (1, 1, 4), "L": (1, 64, 512), "S": (0, 8, 32)}


def narrowed(preset: str) -> VLJepaConfig:
    """The preset in full width with one layer of each kind."""
    config = PRESETS[preset]()
    parts = (config.x_encoder_config, config.predictor_config, config.y_encoder_config)
    for part in (*parts, config.y_decoder_config):
        if part is not None:
            part.num_hidden_layers = 1
            part.vocab_size = WORDS
            part.bos_token_id, part.eos_token_id, part.pad_token_id = 1, 2, 0
    config.y_encoder_config.num_hidden_layers = 2
    config.y_encoder_config.layer_types = ["sliding_attention", "full_attention"]
    return config


def network_of(name: str, config: VLJepaConfig) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """One network of random weights, and inputs to trace it with."""
    torch.manual_seed(0)
    vision = config.x_encoder_config
    if name == "x_encoder":
        shape = (2, vision.frames_per_clip, vision.crop_size, vision.crop_size, 3)
        return XEncoder(config), {"frames": torch.randint(0, 256, shape, dtype=torch.uint8)}
    if name == "predictor":
        visual = torch.randn(2, config.visual_tokens, vision.hidden_size)
        return Predictor(config), predictor_inputs(config, visual)
    if name == "y_encoder":
        ids = torch.randint(3, WORDS, (2, config.text_length))
        mask = (torch.arange(config.text_length)[None] < torch.tensor([[7], [60]])).long()
        return YEncoder(config), {"ids": ids, "mask": mask}
    decoder = YDecoder(config)
    return decoder, _y_decoder_inputs(decoder, torch.randn(2, config.embedding_dim))


CASES = [
    *(("tabletop", name) for name in BUNDLE.graphs),
    *(("open-vljepa", name) for name in ("x_encoder", "predictor")),
    *(("paper", name) for name in ("y_encoder", "y_decoder")),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def graph(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GraphSpec]:
    preset, name = request.param
    if preset == "tabletop":
        yield BUNDLE.graphs[name]
        return
    network, inputs = network_of(name, narrowed(preset))
    folder = tmp_path_factory.mktemp(preset)
    first = {name: value[:1] for name, value in inputs.items() if name != "past"}
    compared = inputs if name == "y_decoder" else first
    spec, _ = export_graph(name, network.eval().requires_grad_(False), inputs, folder, compared)
    sizes = {size for tensor in spec.inputs.values() for size in tensor.shape}
    yield replace(spec, profile={size: PROFILE[size] for size in sizes if isinstance(size, str)})
    for file in folder.iterdir():
        file.unlink()  # they are large


@pytest.mark.parametrize("precision", TYPED)
def test_the_graph_is_parsed_as_the_manifest_says(graph: GraphSpec, precision: str):
    trt, logger = library.load(RTX), library.logger(RTX)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = trt.Builder(logger).create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(typed_graph(graph.path, precision), str(graph.path)), [
        parser.get_error(index).desc() for index in range(parser.num_errors)
    ]
    assert network.get_flag(flag)
    for specs, tensors in (
        (graph.inputs, [network.get_input(i) for i in range(network.num_inputs)]),
        (graph.outputs, [network.get_output(i) for i in range(network.num_outputs)]),
    ):
        assert {tensor.name: trt.nptype(tensor.dtype).__name__ for tensor in tensors} == {
            name: spec.dtype for name, spec in specs.items()
        }
        for tensor in tensors:
            shape = specs[tensor.name].shape
            assert list(tensor.shape) == [-1 if isinstance(size, str) else size for size in shape]


def plan_of(graph: GraphSpec, precision: str, folder: Path) -> bytes:
    """The plan of a graph for every GPU, with the graph's profile."""
    source = graph.at(precision) if precision in graph.variants else graph
    plan = folder / "plan"
    request = Request(
        graph.name, str(source.path), RTX, precision, profile_shapes(graph), (ANY_GPU,),
        current=False, workspace_mib=1024, timings="", target=str(plan),
    )  # fmt: skip
    done = []
    build(request, lambda phase, fraction: done.append(fraction))
    assert done[-1] == 1.0
    return plan.read_bytes()


def test_the_engine_is_built(graph: GraphSpec, tmp_path: Path):
    plan = plan_of(graph, "fp16", tmp_path)
    # The decoder's queries are of one token, which is not worth a kernel of its own.
    assert (ATTENTION in plan) == (graph.name != "y_decoder")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", BUNDLE.graphs)
def test_the_shipped_engines_are_built(name: str, precision: str, tmp_path: Path):
    graph = BUNDLE.graphs[name]
    if precision == "int8" and precision not in graph.variants:
        assert name in ("y_encoder", "y_decoder")  # they do not run in every step
        return
    plan = plan_of(graph, precision, tmp_path)
    assert (ATTENTION in plan) == (name != "y_decoder" and precision != "fp32")


def test_fp8_engines_are_built(tmp_path: Path):
    folder = shutil.copytree(BUNDLE.path, tmp_path / "bundle")
    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 96, 96, 3), np.uint8)
    assert add_fp8(folder, clips, ["what is happening?", "what moves?"])
    for graph in load_bundle(folder).graphs.values():
        if "fp8" in graph.variants:
            plan = plan_of(graph, "fp8", tmp_path)
            assert ATTENTION in plan
            assert b"fp8_e4m3* " in plan  # a kernel that takes or gives fp8
