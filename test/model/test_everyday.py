"""The networks of `everyday`, with random weights: what they are given is what they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from vljepa_ros.errors import VLJepaError
from vljepa_ros.model.convolutional import Convolution
from vljepa_ros.model.everyday import BEST, HEAD, NONE, SOFTLY, ConSE, Eyes, LiteEncoder
from vljepa_ros.model.export import everyday as exported
from vljepa_ros.model.export.convolutions import DEVIATIONS, activation_scales

CLASSES, WIDTH = 40, 24


def _state(encoder: LiteEncoder) -> dict[str, torch.Tensor]:
    """A state as the public file has it, for this encoder, at random."""
    random, sizes, state = torch.Generator().manual_seed(0), encoder.state_dict(), {}
    for name, conv, norm in encoder.sources():
        shape = sizes[f"{name}.conv.weight"].shape
        state[f"{conv}.weight"] = torch.randn(shape, generator=random) * 0.1
        for key in ("weight", "bias", "running_mean"):
            state[f"{norm}.{key}"] = torch.randn(shape[0], generator=random)
        state[f"{norm}.running_var"] = torch.rand(shape[0], generator=random) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)
    return {**state, "_fc.weight": torch.zeros(3, HEAD), "_fc.bias": torch.zeros(3)}


def _meaning(words: np.ndarray, unsure: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """ConSE in NumPy, float64: logits `[T, C]` of a clip's frames to `[D]`."""
    weights = np.exp(np.concatenate([logits, np.full((len(logits), 1), NONE)], 1))
    chances = (weights / weights.sum(1, keepdims=True))[:, :-1].mean(0)
    best = np.argsort(chances)[-BEST:]
    meaning = (chances[best, None] * words[best]).sum(0)
    return meaning + np.sqrt(1 - meaning @ meaning) * unsure


@pytest.fixture
def conse() -> ConSE:
    random = torch.Generator().manual_seed(1)
    words = F.normalize(torch.randn(CLASSES, WIDTH - 1, generator=random), dim=-1)
    unsure = F.pad(torch.zeros(WIDTH - 1), (0, 1), value=1.0)
    network = ConSE(F.pad(words, (0, 1)), unsure).eval()
    torch.nn.init.normal_(network.classes.weight, std=0.2, generator=random)
    return network


def test_conse_is_the_sum_of_the_likeliest_classes_by_their_probability(conse: ConSE):
    tokens = torch.randn(3, 8, HEAD, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        given = conse(tokens).numpy()
        logits = conse.classes(tokens).double().numpy()
    assert given.shape == (3, 1, WIDTH)
    words, unsure = (part.detach().double().numpy() for part in (conse.words, conse.unsure))
    for row, its in zip(given[:, 0], logits, strict=True):
        wanted = _meaning(words, unsure, its)
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_sureness_shows_in_the_cosine(conse: ConSE):
    """A flat distribution is near no word, a sure one is near its class."""
    with torch.no_grad():
        conse.classes.weight.zero_()
        conse.classes.bias.zero_()
        unsure = conse(torch.zeros(1, 8, HEAD))[0, 0]
        conse.classes.bias[5] = 30.0
        sure = conse(torch.zeros(1, 8, HEAD))[0, 0]
    assert float((conse.words.detach() @ unsure).abs().max()) < 0.02
    assert float(conse.words[5].detach() @ sure) > 0.99


def test_somebody_is_said_before_what_else_is_there():
    words = torch.eye(WIDTH)[:20]
    people, unsure = torch.eye(WIDTH)[20:22], torch.eye(WIDTH)[22]
    network = ConSE(words, unsure, people).eval()
    tokens = torch.zeros(2, 8, HEAD + 1)
    tokens[0, :, HEAD] = 1.0
    with torch.no_grad():
        network.classes.bias.zero_()
        network.classes.bias[3] = 30.0
        here, gone = network(tokens)[:, 0]
    assert 0.5 < float(here @ people[0]) < float(here @ words[3])
    assert float(here @ people[1]) == pytest.approx(0.0, abs=1e-5)
    assert float(gone @ people[1]) == pytest.approx(SOFTLY, abs=1e-5)
    assert float(gone @ words[3]) == pytest.approx(1 - SOFTLY, abs=1e-3)


def test_the_token_of_a_frame_ends_with_who_is_in_it():
    class Brightness(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.float().mean((1, 2, 3)) / 255

    frames = torch.full((2, 1, 32, 32, 3), 51, dtype=torch.uint8)
    with torch.no_grad():
        plain = Eyes().eval()
        told = Eyes(Brightness()).eval()
        told.features.load_state_dict(plain.features.state_dict())
        tokens = told(frames)
        np.testing.assert_array_equal(tokens[..., :HEAD], plain(frames))
    assert tokens.shape == (2, 1, HEAD + 1)
    np.testing.assert_allclose(tokens[..., HEAD], 0.2, rtol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_padding_is_tensorflows_same(kernel: int, stride: int):
    """Half the size, and the window of the first output begins where TensorFlow's does."""
    layer = Convolution(1, 1, kernel, stride=stride, active=False)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    picture = torch.zeros(1, 1, 8, 8)
    before = max(kernel - stride, 0) // 2
    picture[0, 0, kernel - 1 - before, 0] = 1.0  # the last row of the first window
    picture[0, 0, kernel - before, 4] = 1.0  # the row after it
    with torch.no_grad():
        out = layer(picture)[0, 0]
    assert out.shape == (8 // stride, 8 // stride)
    assert out[0, 0] == 1.0 and out[0, 4 // stride] == 0.0


def test_batch_normalisation_is_folded_into_the_convolutions(tmp_path):
    encoder = LiteEncoder().eval()
    state = _state(encoder)
    spreads = exported.fill(encoder, state, tmp_path)
    stem, x = encoder.stem, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    norm = [state[f"_bn0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    with torch.no_grad():
        wide = F.conv2d(stem.pad(x), state["_conv_stem.weight"], stride=2)
        wanted = F.relu6(F.batch_norm(wide, *norm, eps=exported.EPSILON))
        np.testing.assert_allclose(stem(x), wanted, atol=1e-5)
    assert len(spreads) == len(list(encoder.sources()))


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_of_another_network_are_refused_by_name(tmp_path, change: str):
    encoder = LiteEncoder()
    state = _state(encoder)
    if change == "missing":
        del state["_blocks.3._bn1.bias"]
    else:
        state["_blocks.3._bn1.bias_too"] = torch.zeros(1)
    with pytest.raises(VLJepaError, match=rf"_blocks\.3\._bn1\.bias.*{change}"):
        exported.fill(encoder, state, tmp_path)


def test_scales_cover_what_normalised_channels_do():
    """A convolution's own range, ReLU6's, and the sum of two."""
    nodes = [
        helper.make_node("Conv", ["x", "one"], ["a"]),
        helper.make_node("Clip", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "two"], ["c"]),
        helper.make_node("Conv", ["c", "three"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["e"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, None)],
                              [value("e", TensorProto.FLOAT, None)])  # fmt: skip
    spreads = {
        "one": (np.array([9.0]), np.array([1.0])),
        "two": (np.array([-1.0, 2.0]), np.array([3.0, 1.0])),
        "three": (np.array([1.0, 0.0]), np.array([4.0, 1.0])),
    }  # fmt: skip
    scales = activation_scales(graph, spreads)
    assert set(scales) == {"x", "b", "c", "d", "e"}  # what is cut has no scale of its own

    def ends(name: str) -> tuple[float, float]:
        (one,) = scales[name]
        low = -float(one["zero_point"]) * float(one["scale"])
        return low, low + 255 * float(one["scale"])

    assert ends("b") == pytest.approx((0.0, 6.0))
    wide = 3.0 * DEVIATIONS
    assert ends("c") == pytest.approx((-1 - wide, -1 + wide), abs=0.1)
    both = 5.0 * DEVIATIONS  # the deviation of a sum: 3 and 4 make 5
    assert ends("e") == pytest.approx((-both, both), abs=0.2)


def test_classes_are_said_in_plain_words_and_kinds_are_many():
    classes = exported.read_classes()
    assert len(classes) == len({one.synset for one in classes}) == 1000
    assert all(one.said and one.name for one in classes)
    members = {
        kind: sum(kind in one.kinds for one in classes) for kind in exported.kinds_of(classes)
    }
    assert len(members) >= 20 and all(members.values())
    for kind in ("a dog", "a bird", "a vehicle", "furniture", "fruit", "a tool", "a bottle"):
        assert members[kind] >= 5
    said = exported.phrases(classes)
    assert len(set(said)) == len(said) > 1000


def test_class_vectors_tell_words_apart_and_know_their_kinds():
    """Words that share most of what they are: the mean of words would not tell them apart."""
    random = np.random.default_rng(0)
    classes = [
        exported.Class("n1", "a cup", ("mug",), ("a vessel",)),
        exported.Class("n2", "a jar", (), ("a vessel",)),
        exported.Class("n3", "a hat", (), ()),
    ]
    texts = ["a cup", "cup", "mug", "a jar", "jar", "a hat", "hat", "a vessel", "vessel"]
    common = random.normal(size=64) * 2
    rows = common + random.normal(size=(len(texts), 64))
    vectors = dict(zip(texts, rows / np.linalg.norm(rows, axis=1, keepdims=True), strict=True))
    found = exported.class_vectors(classes, vectors)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)
    for text, owner in (("cup", 0), ("mug", 0), ("a jar", 1), ("hat", 2)):
        assert int((found @ vectors[text]).argmax()) == owner
    vessel = found @ vectors["a vessel"]
    assert vessel[2] < min(vessel[0], vessel[1])
