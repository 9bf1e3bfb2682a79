"""From a bundle back to torch: the weights of its ONNX graphs in the networks they came from.

Invariant: a model that `restore` returns has the numbers of every graph of its bundle, compared
on random inputs in ONNX Runtime; a bundle for which that does not hold is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import Tensor, nn

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import BundleError
from vljepa_ros.inference.backends import open_engine

from . import everyday
from .config import CONFIG, VLJepaConfig
from .fused import FusedPredictor, FusedXEncoder, fused
from .networks import VLJepa

DIFFERENCE = 1e-3  # most, in parts of an output's largest number
UNUSED = ("model.pooler.", "encoder.embeddings.mask_token")  # of BERT and DINO: no graph has them

Inputs = dict[str, Tensor]


class RestoreError(BundleError):
    """A bundle whose networks cannot be made again from its graphs."""


def restore(folder: Path) -> VLJepa:
    """The torch model of the bundle in `folder`, in eval mode, its weights as the bundle has them.

    Matrices were stored as fp16 and word tables as int8, so they are not those of the training,
    but those of the bundle. Raises RestoreError, and BundleError for an altered file.
    """
    model, _ = _restored(folder)
    if model is None:
        raise RestoreError(
            f"{folder} is of public networks, and no VL-JEPA that could be trained on; start from "
            "a bundle or a training of this package."
        )
    return model


def restore_networks(folder: Path) -> dict[str, nn.Module]:
    """The networks of any bundle that says how they are made, by the names of their graphs.

    As `restore` has them. Raises RestoreError, and BundleError for an altered file.
    """
    return _restored(folder)[1]


def _restored(folder: Path) -> tuple[VLJepa | None, dict[str, nn.Module]]:
    bundle = load_bundle(folder)
    if not (folder / CONFIG).is_file():
        raise RestoreError(
            f"{folder} does not say how its networks are made: it holds no {CONFIG}; export it "
            "again with this version of vljepa_ros, or start from the folder of its training."
        )
    described = json.loads((folder / CONFIG).read_text("utf-8"))
    model, vocabulary = None, described["y_encoder_config"]["vocab_size"]
    if described["model_type"] == everyday.MODEL_TYPE:
        networks = everyday.networks(described)
        inputs = _clip_inputs(bundle, vocabulary)
    else:
        config = VLJepaConfig.from_json_file(str(folder / CONFIG))
        model = VLJepa(config).eval()
        networks = dict(model.named_children())
        inputs = {**_clip_inputs(bundle, vocabulary), **_query_inputs(config, bundle)}
    for name, network in networks.items():
        if name not in bundle.graphs:
            raise RestoreError(f"{folder} has no graph '{name}', and its {CONFIG} asks for one.")
        spec = bundle.graphs[name]
        _load(network, spec.path, inputs[name])
        _compare(network, spec, inputs[name])
    return model, networks


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ids(rows: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=_generator())


def _mask(length: int) -> Tensor:
    return (torch.arange(length)[None] < torch.tensor([[length // 2], [length]])).long()


def _clip_inputs(bundle: Bundle, vocabulary: int) -> dict[str, Inputs]:
    """Random inputs of the networks that every bundle has, the same each time."""
    clip, text, tokens = bundle.clip, bundle.y_encoder.length, bundle.graphs["predictor"].inputs
    size = (2, clip.chunk, clip.image_size, clip.image_size, 3)
    visual = (2, *(int(size) for size in tokens["visual_tokens"].shape[1:]))
    frames = torch.randint(0, 256, size, generator=_generator(), dtype=torch.uint8)
    return {
        "x_encoder": {"frames": frames},
        "predictor": {"visual_tokens": torch.randn(visual, generator=_generator())},
        "y_encoder": {"ids": _ids(2, text, vocabulary), "mask": _mask(text)},
    }


def _query_inputs(config: VLJepaConfig, bundle: Bundle) -> dict[str, Inputs]:
    """Those of a predictor that is asked, and of a Y-decoder."""
    if bundle.query is None:
        raise RestoreError(
            f"{bundle.path} has no query, and its {CONFIG} makes a predictor that is asked; export "
            "it again with this version of vljepa_ros."
        )
    visual = _clip_inputs(bundle, 4)["predictor"]
    query = bundle.query.length
    asked = {"query_ids": _ids(2, query, config.predictor_config.vocab_size),
             "query_mask": _mask(query)}  # fmt: skip
    inputs = {"predictor": {**visual, **asked}}
    if bundle.decoder is not None:
        decoder = bundle.decoder
        past = (2 * decoder.layers, 2, decoder.heads, 3, decoder.head_dim)
        inputs["y_decoder"] = {
            "embedding": torch.randn(2, bundle.embedding_dim, generator=_generator()),
            "ids": _ids(2, 1, config.y_decoder_config.vocab_size),
            "past": torch.randn(past, generator=_generator()),
        }
    return inputs


def _load(network: nn.Module, path: Path, inputs: Inputs) -> None:
    """Give a network the weights of its graph."""
    written = fused(network, inputs)
    state = _state(written, path, inputs)
    for key, mine in written.state_dict().items():
        if key not in state and key.startswith(UNUSED):
            state[key] = np.zeros(mine.shape, np.float32)
        if key not in state or state[key].shape != mine.shape:
            found = "nothing" if key not in state else f"{list(state[key].shape)}"
            raise RestoreError(
                f"{path} has {found} for '{key}', which is {list(mine.shape)} by {CONFIG}; "
                "start from the folder of its training instead."
            )
    written.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    if isinstance(written, (FusedXEncoder, FusedPredictor)):
        network.load_state_dict(written.unpacked())


def _state(network: nn.Module, path: Path, inputs: Inputs) -> dict[str, np.ndarray]:
    """The weights that a graph has for a network.

    Most keep their name. The matrices of linear layers lose theirs when the exporter transposes
    them; the graph uses them in the order in which the network calls the layers.
    """
    graph = onnx.load(path, load_external_data=False).graph
    stored = {t.name: _array(t, path.parent) for t in graph.initializer}
    state, named = {}, set()
    for key in network.state_dict():
        for name, value in _by_name(stored, key):
            state[key] = value
            named.add(name)
    called = [f"{name}.weight" for name in _linear_layers(network, inputs)]
    nameless = [key for key in called if key not in state and not key.startswith(UNUSED)]
    if not nameless:  # a fused network has no such layers
        return state
    matrices = list(_matrices(graph, stored, named))
    if len(nameless) != len(matrices):
        raise RestoreError(
            f"{path} has {len(matrices)} matrices where its network has {len(nameless)}; "
            "it was exported by another version of vljepa_ros, so start from its training instead."
        )
    return state | dict(zip(nameless, matrices, strict=True))


def _array(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """A tensor's values. Installed and cached bundles are links, which onnx does not follow."""
    if uses_external_data(tensor):
        where = ExternalDataInfo(tensor)
        with (folder / Path(where.location).name).open("rb") as file:
            file.seek(where.offset or 0)
            tensor.raw_data = file.read(where.length or -1)
        tensor.data_location = onnx.TensorProto.DEFAULT
    return numpy_helper.to_array(tensor)


def _by_name(stored: dict[str, np.ndarray], key: str) -> Iterator[tuple[str, np.ndarray]]:
    """(the name in the graph, fp32) of the weights `key`, if the graph still calls them so."""
    if key in stored:
        yield key, stored[key].astype(np.float32)
    elif f"{key}_half" in stored:
        yield f"{key}_half", stored[f"{key}_half"].astype(np.float32)
    elif f"{key}_int8" in stored:
        wide = stored[f"{key}_int8"].astype(np.float32)
        yield f"{key}_int8", wide * stored[f"{key}_scale"]


def _linear_layers(network: nn.Module, inputs: Inputs) -> list[str]:
    """The names of the linear layers in the order in which they are called."""
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: called.append(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.inference_mode():
        network(**inputs)
    for hook in hooks:
        hook.remove()
    return called


def _matrices(
    graph: onnx.GraphProto, stored: dict[str, np.ndarray], named: set[str]
) -> Iterator[np.ndarray]:
    """The nameless matrices of a graph as torch has them `[out, in]`, in the order of their use."""
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        for name, matrix in _by_name(stored, node.input[1]):
            if name not in named:
                flipped = any(a.name == "transB" and a.i for a in node.attribute)
                yield matrix if flipped else matrix.T


def _compare(network: nn.Module, spec: GraphSpec, inputs: Inputs) -> None:
    with torch.inference_mode():
        answer = network(**inputs)
    wanted = answer if isinstance(answer, tuple) else (answer,)
    engine = open_engine(spec, "onnxruntime-cpu", threads=1, precision="fp32")
    given = engine.run(**{name: value.numpy() for name, value in inputs.items()})
    engine.close()
    for output, value in zip(spec.outputs, wanted, strict=True):
        largest = float(np.abs(given[output]).max())
        difference = float(np.abs(given[output] - value.numpy()).max()) / largest
        if not difference <= DIFFERENCE:
            raise RestoreError(
                f"the networks made from {spec.path} give other numbers than it does ('{output}' "
                f"by {difference:.2g}); start from the folder of its training instead."
            )
