"""A TensorRT engine while it runs: what crosses to the GPU, what stays there, how it fails."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from gpu import FakeGpu, fake_gpu, quick_builds  # noqa: F401, as fixtures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import DeviceError, EngineError, TensorsLostError
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.tensors import Joined
from vljepa_ros.inference.trt.open import open_trt, to_build

LIBRARIES = ("tensorrt", "tensorrt_rtx")
random = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_numbers_in_whatever_order() -> None:
    random.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle, verify=False)


@pytest.fixture
def gpu(quick_builds: FakeGpu) -> FakeGpu:  # noqa: F811
    return quick_builds


def frame() -> np.ndarray:
    return random.integers(0, 256, (32, 32, 3), np.uint8)


def clip() -> list[np.ndarray]:
    return [frame() for _ in range(4)]


def queries(count: int = 1) -> dict[str, np.ndarray]:
    return {
        "query_ids": random.integers(1, 30, (count, 12)),
        "query_mask": np.ones((count, 12), np.int64),
    }


def on_cpu(bundle: Bundle, part: str, **inputs: Any) -> dict[str, np.ndarray]:
    return open_engine(bundle.graphs[part], "onnxruntime-cpu").run(**inputs)


def opened(bundle: Bundle, part: str, library: str = "tensorrt", precision: str = "fp32") -> Any:
    return open_trt(bundle.graphs[part], library, precision, None)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("integrated", ["0", "1"])
def test_every_graph_gives_what_it_gives_on_the_cpu(
    gpu: FakeGpu, bundle: Bundle, library: str, integrated: str
) -> None:
    gpu.again(FAKE_GPU_INTEGRATED=integrated)
    clips = np.stack([clip(), clip(), clip()])
    tokens = on_cpu(bundle, "x_encoder", frames=clips)["visual_tokens"]
    ids, mask = np.arange(32).reshape(2, 16), np.ones((2, 16), np.int64)
    past = random.normal(size=(2, 3, 2, 5, 8)).astype(np.float32)
    embedding = random.normal(size=(3, 32)).astype(np.float32)
    inputs: dict[str, dict[str, Any]] = {
        "x_encoder": {"frames": clips},
        "predictor": {"visual_tokens": tokens, **queries(2)},
        "y_encoder": {"ids": ids, "mask": mask},
        "y_decoder": {"embedding": embedding, "ids": np.full((3, 1), 5), "past": past},
    }
    for part, given_ in inputs.items():
        engine = opened(bundle, part, library)
        assert (engine.name, engine.backend, engine.precision) == (part, library, "fp32")
        outputs = engine.run(**given_)
        for name, wanted in on_cpu(bundle, part, **given_).items():
            assert outputs[name].dtype == wanted.dtype
            np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-6)
        kept = engine.run_keeping(**given_)
        for name, array in outputs.items():
            np.testing.assert_array_equal(np.asarray(kept[name]), array)
        engine.close()


def test_the_decoder_begins_with_an_empty_cache(gpu: FakeGpu, bundle: Bundle) -> None:
    engine = opened(bundle, "y_decoder")
    inputs = {
        "embedding": random.normal(size=(1, 32)).astype(np.float32),
        "ids": np.ones((1, 1), np.int64),
        "past": np.zeros((2, 1, 2, 0, 8), np.float32),
    }
    outputs = engine.run(**inputs)
    assert outputs["present"].shape == (2, 1, 2, 1, 8)
    wanted = on_cpu(bundle, "y_decoder", **inputs)
    np.testing.assert_allclose(outputs["logits"], wanted["logits"], rtol=1e-5)


@pytest.mark.parametrize("integrated", ["0", "1"])
def test_each_frame_crosses_once(gpu: FakeGpu, bundle: Bundle, integrated: str) -> None:
    gpu.again(FAKE_GPU_INTEGRATED=integrated)
    counts = gpu.fakegpu.counts
    engine = opened(bundle, "x_encoder")
    window, seen = clip(), 4
    engine.run(frames=[window])
    counts.clear()
    for step in range(20):
        window = [*window[1:], frame()]
        outputs = engine.run(frames=[window])
        wanted = on_cpu(bundle, "x_encoder", frames=np.stack([window]))
        np.testing.assert_allclose(outputs["visual_tokens"], wanted["visual_tokens"], rtol=1e-5)
        seen += 1
        if integrated == "0":
            assert counts["htod"] == step + 1
            assert counts["htod_bytes"] == (step + 1) * 32 * 32 * 3
        else:  # the host's memory is the GPU's: nothing crosses, in neither direction
            assert counts["htod"] == counts["dtoh"] == 0


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), max_size=12))
def test_cameras_in_any_order_get_their_own_frames(
    gpu: FakeGpu, bundle: Bundle, steps: list[list[int]]
) -> None:
    """More cameras than one batch has room for, so frames make room for others."""
    engine = shared(gpu, bundle)
    windows = [clip() for _ in range(10)]
    for cameras in steps:
        for camera in set(cameras):
            windows[camera] = [*windows[camera][1:], frame()]
        clips = [windows[camera] for camera in cameras]
        outputs = engine.run(frames=clips)["visual_tokens"]
        wanted = on_cpu(bundle, "x_encoder", frames=np.stack(clips))["visual_tokens"]
        np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)


def shared(gpu: FakeGpu, bundle: Bundle) -> Any:
    """One engine for all examples of a property."""
    if not hasattr(gpu, "engine"):
        gpu.engine = opened(bundle, "x_encoder")
    return gpu.engine


def test_a_frame_that_is_needed_now_does_not_make_room_for_a_new_one(
    gpu: FakeGpu, bundle: Bundle
) -> None:
    engine = opened(bundle, "x_encoder")
    old = [clip() for _ in range(8)]
    engine.run(frames=old)  # the ring is full
    gpu.fakegpu.counts.clear()
    engine.run(frames=[clip(), old[0]])  # the oldest come second
    assert gpu.fakegpu.counts["htod"] == 4


def test_tokens_stay_on_the_gpu_between_encoder_and_predictor(gpu: FakeGpu, bundle: Bundle) -> None:
    encoder, predictor = opened(bundle, "x_encoder"), opened(bundle, "predictor")
    windows = [clip() for _ in range(3)]
    tokens = encoder.run_keeping(frames=windows)["visual_tokens"]
    assert (tokens.shape, tokens.dtype, len(tokens)) == ((3, 32, 16), np.float32, 3)
    asked = queries(2)
    counts = gpu.fakegpu.counts
    counts.clear()
    in_order = predictor.run(visual_tokens=[tokens[0], tokens[1], tokens[2]], **asked)
    assert counts["dtod"] == 0  # they lie one after another, and are read there
    gathered = predictor.run(visual_tokens=[tokens[2], tokens[-3]], **asked)["embedding"]
    assert counts["dtod"] == 2
    assert counts["htod"] == 4 and counts["dtoh"] == 2  # ids and masks in, embeddings out
    wanted = on_cpu(bundle, "predictor", **asked, visual_tokens=np.asarray(tokens))["embedding"]
    np.testing.assert_allclose(in_order["embedding"], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gathered, wanted[[2, 0]], rtol=1e-4, atol=1e-6)
    mixed = predictor.run(visual_tokens=[np.asarray(tokens[1]), tokens[0]], **asked)["embedding"]
    np.testing.assert_allclose(mixed, wanted[[1, 0]], rtol=1e-4, atol=1e-6)
    with pytest.raises(IndexError):
        tokens[3]


@pytest.mark.parametrize(("chunk", "query"), [(1, True), (2, False)])
def test_tokens_of_chunks_are_joined_on_the_gpu(
    gpu: FakeGpu, tmp_path: Path, chunk: int, query: bool
) -> None:
    """A clip's tokens from several runs cross to the host in no direction."""
    bundle = load_bundle(make_bundle(tmp_path / "c", chunk=chunk, query=query), verify=False)
    encoder, predictor = opened(bundle, "x_encoder"), opened(bundle, "predictor")
    asked, counts = (queries(2) if query else {}), gpu.fakegpu.counts
    runs = [[[frame() for _ in range(chunk)] for _ in range(4 // chunk)] for _ in range(2)]
    kept = [encoder.run_keeping(frames=chunks)["visual_tokens"] for chunks in runs]
    wanted = np.concatenate([np.asarray(tokens) for tokens in kept])  # of each chunk

    def predicted(*clips: list[int]) -> np.ndarray:
        rows = [row for tokens in kept for row in (tokens[k] for k in range(len(tokens)))]
        joined = [Joined([rows[k] for k in clip]) for clip in clips]
        assert joined[0].shape == bundle.graphs["predictor"].inputs["visual_tokens"].shape[1:]
        counts.clear()
        found = predictor.run(visual_tokens=joined, **asked)["embedding"]
        assert counts["htod"] == 2 * query and counts["dtoh"] == 1  # ids and mask, and embeddings
        on_host = np.stack([np.concatenate(wanted[clip]) for clip in clips])
        same = on_cpu(bundle, "predictor", visual_tokens=on_host, **asked)["embedding"]
        np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-6)
        return found

    count = 4 // chunk
    in_order = list(range(count))
    assert len(predicted(in_order)) == 1 and counts["dtod"] == 0  # read where they are
    predicted(in_order[::-1])
    assert counts["dtod"] == count
    later = [count + k for k in in_order]  # of the other run
    predicted([*in_order[1:], later[0]], later, [0] * count)
    assert counts["dtod"] == 3 * count
    mixed = Joined([wanted[0], *(kept[1][k] for k in in_order[1:])])
    found = predictor.run(visual_tokens=[mixed], **asked)["embedding"]
    same = on_cpu(bundle, "predictor", visual_tokens=np.asarray(mixed)[None], **asked)["embedding"]
    np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-6)
    assert [np.asarray(mixed[k]).tolist() for k in (0, -1)] == np.asarray(mixed)[[0, -1]].tolist()


def test_rows_that_the_library_cannot_read_in_place_are_gathered(
    gpu: FakeGpu, tmp_path: Path
) -> None:
    """TensorRT wants addresses that are multiples of 256 bytes; these rows have 128."""
    bundle = load_bundle(make_bundle(tmp_path / "small", image_size=8), verify=False)
    small = random.integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    tokens = opened(bundle, "x_encoder").run_keeping(frames=small)["visual_tokens"]
    predictor, asked = opened(bundle, "predictor"), queries()
    for rows in ([1], [0, 1]):
        given_ = [tokens[row] for row in rows]
        outputs = predictor.run(visual_tokens=given_, **asked)["embedding"]
        wanted = on_cpu(bundle, "predictor", visual_tokens=np.asarray(tokens)[rows], **asked)
        np.testing.assert_allclose(outputs, wanted["embedding"], rtol=1e-4, atol=1e-6)


def test_tokens_that_are_held_are_not_written_over(gpu: FakeGpu, bundle: Bundle) -> None:
    engine = opened(bundle, "x_encoder")
    windows = [clip() for _ in range(6)]
    held = [engine.run_keeping(frames=[window])["visual_tokens"][0] for window in windows]
    del held[2]
    engine.run_keeping(frames=[clip()])
    wanted = on_cpu(bundle, "x_encoder", frames=np.stack(windows))["visual_tokens"]
    for row, number in zip(held, (0, 1, 3, 4, 5), strict=True):
        np.testing.assert_allclose(np.asarray(row), wanted[number], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_is_allocated_in_the_steady_state(
    gpu: FakeGpu, bundle: Bundle, library: str
) -> None:
    model = Runtime(bundle, library, parts=tuple(bundle.graphs))
    windows = [clip() for _ in range(3)]
    tokens: list[Any] = [None] * 3
    said = random.normal(size=(6, 32)).astype(np.float32)

    def step(number: int) -> None:
        cameras = [[0], [1, 2], [0, 1, 2]][number % 3]
        for camera in cameras:
            windows[camera] = [*windows[camera][1:], frame()]
        rows = model.encode_keeping([windows[camera] for camera in cameras])
        for camera, row in zip(cameras, rows, strict=True):
            tokens[camera] = row
        model.predict(rows, ["What is happening?", "a red ball"])
        model.decode(said[number % 6])  # texts as long as those that came before
        model.embed_text([f"a cube {number}"])

    for number in range(6):
        step(number)
    counts = gpu.fakegpu.counts
    counts.clear()
    pieces = len(gpu.fakegpu.memory.pieces)
    for number in range(30):
        step(number)
    assert counts["mem_alloc"] == counts["pagelocked_empty"] == 0
    assert len(gpu.fakegpu.memory.pieces) == pieces
    model.close()


def test_the_decoder_s_cache_does_not_cross(gpu: FakeGpu, bundle: Bundle) -> None:
    model = Runtime(bundle, "tensorrt", parts=("y_decoder",))
    cpu = Runtime(bundle, "onnxruntime-cpu", parts=("y_decoder",))
    embeddings = random.normal(size=(3, 32)).astype(np.float32)
    gpu.fakegpu.counts.clear()
    assert model.decode_all(embeddings) == cpu.decode_all(embeddings)
    tokens = gpu.fakegpu.counts["dtoh"]  # one download of logits each
    assert gpu.fakegpu.counts["htod_bytes"] == tokens * (3 * 32 * 4 + 3 * 8)


def test_closing_gives_all_memory_back(gpu: FakeGpu, bundle: Bundle) -> None:
    pieces = gpu.fakegpu.memory.pieces
    assert not pieces
    engine = opened(bundle, "x_encoder")
    kept = engine.run_keeping(frames=[clip()])["visual_tokens"]
    assert pieces
    engine.close()
    assert not pieces
    with pytest.raises(TensorsLostError, match="closed"):
        np.asarray(kept)
    with pytest.raises(TensorsLostError):
        opened(bundle, "predictor").run(visual_tokens=[kept[0]], **queries())
    with pytest.raises(EngineError, match="'x_encoder' is closed"):
        engine.run(frames=[clip()])
    engine.close()


def test_shapes_outside_the_profile_are_refused(gpu: FakeGpu, bundle: Bundle) -> None:
    engine = opened(bundle, "x_encoder")
    assert engine.most == {"B": 8}
    with pytest.raises(EngineError, match=r"'frames' of 'x_encoder' has B = 9.*for 1 to 8"):
        engine.run(frames=[clip() for _ in range(9)])
    with pytest.raises(EngineError, match="must be uint8"):
        engine.run(frames=np.zeros((1, 4, 32, 32, 3), np.float32))
    engine.run(frames=[clip()])


def test_nodes_of_one_process_use_the_gpu_from_their_threads(gpu: FakeGpu, bundle: Bundle) -> None:
    engines = [opened(bundle, "x_encoder") for _ in range(3)]
    windows = [clip() for _ in range(3)]
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = engines[number].run(frames=[windows[number]])["visual_tokens"][0]
        assert gpu.fakegpu.threads.stack == []  # else PyCUDA aborts when the thread ends

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = on_cpu(bundle, "x_encoder", frames=np.stack(windows))["visual_tokens"]
    for number in range(3):
        np.testing.assert_allclose(results[number], wanted[number], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("word", "said"),
    [("execute", r"'x_encoder' failed on Fake Orin \(8.7\) \(.*out of memory"),
     ("lost", r"Fake Orin failed \(.*unspecified launch failure")],
)  # fmt: skip
def test_a_gpu_that_fails_in_a_run_is_a_device_error(
    gpu: FakeGpu, bundle: Bundle, word: str, said: str
) -> None:
    engine = opened(bundle, "x_encoder")
    kept = engine.run_keeping(frames=[clip()])["visual_tokens"]
    gpu.faults(word)
    with pytest.raises(DeviceError, match=said):
        engine.run(frames=[clip()])
    if word == "lost":
        with pytest.raises(TensorsLostError, match="went with its device"):
            np.asarray(kept)
    engine.close()  # does not raise


def test_a_pool_that_cannot_grow_is_a_device_error(gpu: FakeGpu, bundle: Bundle) -> None:
    engine = opened(bundle, "x_encoder")
    held = [engine.run_keeping(frames=[clip()]) for _ in range(2)]
    gpu.faults("memory")
    with pytest.raises(DeviceError, match="memory of Fake Orin is used up"):
        engine.run_keeping(frames=[clip()])
    del held
    engine.run_keeping(frames=[clip()])


@pytest.mark.parametrize("word", ["memory", "context"])
def test_no_memory_at_the_start_is_a_device_error_and_leaves_none_behind(
    gpu: FakeGpu, bundle: Bundle, word: str
) -> None:
    opened(bundle, "x_encoder").close()
    gpu.faults(word)
    with pytest.raises(DeviceError, match=r"(?i)memory"):
        opened(bundle, "x_encoder")
    assert not gpu.fakegpu.memory.pieces
    assert not to_build(bundle.graphs["x_encoder"], "tensorrt", "fp32")  # the plan is good


def test_a_model_degrades_to_the_cpu_and_loses_only_what_was_on_the_gpu(
    gpu: FakeGpu, bundle: Bundle
) -> None:
    model, window = Runtime(bundle), clip()
    assert {one.backend for one in model.info} == {"tensorrt"}
    (tokens,) = model.encode_keeping([window])
    before = model.predict([tokens], ["what is happening ?"])
    gpu.faults("lost")
    for _ in range(2):  # the GPU's engine runs first, then the CPU's, which cannot have them either
        with pytest.raises(TensorsLostError):
            model.predict([tokens], ["what is happening ?"])
    (again,) = model.encode_keeping([window])
    after = model.predict([again], ["what is happening ?"])
    np.testing.assert_allclose(after, before, atol=1e-2)
    assert {one.backend for one in model.info} == {"onnxruntime-cpu"}
    model.close()


@pytest.mark.parametrize("eager", [True, False])
def test_the_encoder_s_kernels_go_before_the_decoder_s(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    from vljepa_ros.inference.trt import priority

    monkeypatch.setattr(gpu.fakegpu.Queue, "eager", eager)
    monkeypatch.setattr(priority.ctypes, "CDLL", lambda name: gpu.fakegpu.Libcuda())
    queue = gpu.fakegpu.Queue
    priorities = {}
    for part, inputs in (
        ("x_encoder", {"frames": [clip()]}),
        ("predictor", {"visual_tokens": np.ones((1, 32, 16), np.float32), **queries()}),
        ("y_decoder", {"embedding": np.ones((1, 32), np.float32),
                       "ids": np.ones((1, 1), np.int64),
                       "past": np.zeros((2, 1, 2, 0, 8), np.float32)}),
    ):  # fmt: skip
        engine = opened(bundle, part)
        queue.order.clear()
        outputs = engine.run(**inputs)
        (handle,) = [handle for what, handle in queue.order if what == "execute"]
        priorities[part] = queue.known[handle].priority
        arrays = {name: np.stack(v) if isinstance(v, list) else v for name, v in inputs.items()}
        for name, wanted in on_cpu(bundle, part, **arrays).items():
            np.testing.assert_allclose(outputs[name], wanted, rtol=1e-4, atol=1e-6)
        streams = len(queue.known)
        engine.close()
        assert len(queue.known) == streams - (part != "y_decoder")
    assert priorities == {"x_encoder": -5, "predictor": -5, "y_decoder": 0}


def test_the_library_says_what_it_made_of_a_graph(gpu: FakeGpu, bundle: Bundle) -> None:
    assert '"Layers"' in opened(bundle, "predictor").inspect()


def test_an_engine_whose_tensors_are_not_the_manifest_s_is_refused(
    gpu: FakeGpu, bundle: Bundle
) -> None:
    graph = bundle.graphs["predictor"]
    outputs = {"embedding": dataclasses.replace(graph.outputs["embedding"], dtype="float16")}
    with pytest.raises(EngineError, match=r"'embedding' is float16.*export the bundle"):
        open_trt(dataclasses.replace(graph, outputs=outputs), "tensorrt", "fp32", None)
