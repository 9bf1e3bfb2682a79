"""The benchmarks do what they say: the same inputs for all, right counts, reasons for what is left
out. How fast anything is, no test asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle

from vljepa_ros.bench import contenders as bench_contender
from vljepa_ros.bench import engines as bench_engines
from vljepa_ros.bench import flop as bench_flop
from vljepa_ros.bench import publisher
from vljepa_ros.bench.contender import ANEW, STEP
from vljepa_ros.bench.contenders import Bench, EngineContender, Stream, cosines
from vljepa_ros.bench.footprint import Footprint
from vljepa_ros.bench.machine import describe, machine
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.records import REPORTS
from vljepa_ros.errors import EngineError, VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.settings import Settings
from vljepa_ros.stamps import SECOND_NS

SHIPPED = Path(__file__).parents[2] / "engines" / "tabletop"
PARTS = ["x_encoder", "predictor", "y_encoder", "y_decoder"]


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "from vljepa_ros.cli import main; main()"
    words = [sys.executable, "-c", code, "bench", *map(str, arguments)]
    return subprocess.run(words, text=True, capture_output=True, timeout=110, check=False)


def report(*arguments: str | Path) -> dict[str, Any]:
    result = bench(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found) == list(REPORTS[f"bench {arguments[0]}"])
    return found


# ---------------------------------------------------------------- engines


def test_engines_are_measured_whole(tiny_bundle: Path) -> None:
    found = report(
        "engines", "--bundle", tiny_bundle, "--backend", "onnxruntime-cpu", "--precision",
        "auto,fp32", "--no-peers", "--steps", "20", "--rounds", "2",
    )  # fmt: skip
    assert set(found["engines"]) == {"onnxruntime-cpu auto", "onnxruntime-cpu fp32"}
    for row in found["engines"].values():
        assert list(row["tasks"]) == [*PARTS, STEP]
        for task in row["tasks"].values():
            assert task["steps"] == 20
            assert 0 < task["p50_ms"] <= task["p90_ms"] <= task["p99_ms"]
            assert task["cosine"] == pytest.approx(1.0, abs=1e-6)
            assert task["times_faster_than"] == {}
        assert 0 < row["own_mb"] < row["resident_mb"]
    growth = found["growth"]["onnxruntime-cpu auto"]
    assert list(growth["cameras"]) == ["1", "2", "3", "4", "6", "8"]
    assert list(growth["queries"]) == list(growth["queries, predictor"])
    assert list(growth["queries"]) == ["1", "2", "4", "8", "16", "32"]


@pytest.mark.parametrize(("chunk", "query"), [(1, False), (2, True)])
def test_a_chunk_is_measured_beside_the_whole_clip(tmp_path: Path, chunk: int, query: bool) -> None:
    found = report(
        "engines", "--bundle", make_bundle(tmp_path, chunk=chunk, query=query, frames=8),
        "--backend", "onnxruntime-cpu", "--precision", "auto", "--no-peers", "--steps", "20",
        "--rounds", "2",
    )  # fmt: skip
    (row,) = found["engines"].values()
    assert list(row["tasks"]) == [*PARTS, STEP, ANEW]
    assert all(task["cosine"] == pytest.approx(1.0, abs=1e-6) for task in row["tasks"].values())
    step, anew = (row["tasks"][name] for name in (STEP, ANEW))
    assert step["times_faster_than"] == {ANEW: pytest.approx(anew["p50_ms"] / step["p50_ms"])}
    (growth,) = found["growth"].values()
    assert list(growth) == (["cameras", "queries", "queries, predictor"] if query else ["cameras"])


def test_a_step_of_chunks_runs_one_chunk_and_predicts_the_whole_clip(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, chunk=2, query=False, frames=8))
    engines = EngineContender(bundle, "onnxruntime-cpu", "fp32", 1, lambda *_: None)
    encoded, predicted = [], []
    encode, predict = engines.encode, engines.predict

    def noted(clips: Any) -> Any:
        encoded.append([len(chunk) for chunk in clips])
        return encode(clips)

    def asked(tokens: Any, *words: np.ndarray) -> np.ndarray:
        predicted.append([row.shape for row in tokens])
        return predict(tokens, *words)

    engines.encode, engines.predict = noted, asked  # type: ignore[method-assign]
    timed = Bench(engines, bundle)
    assert len(timed.time(STEP, cameras=3, queries=1, steps=4)) == 4
    assert encoded == [[2] * 12] + [[2] * 3] * 6  # the first clips, then a chunk of each camera
    assert set(map(tuple, predicted)) == {((64, 16),) * 3}
    encoded.clear()
    timed.time(ANEW, cameras=1, queries=1, steps=4)
    assert encoded == [[2] * 4] * 6


def test_what_cannot_run_is_named_with_its_reason(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny bundle has no int8, and does not say how its networks are made."""
    monkeypatch.setattr(bench_engines, "PEERS", {"torch": "torch, eager"})
    bench_engines.engines(
        str(tiny_bundle), "onnxruntime-cpu", "fp32,int8", 1, 10, 1, peers=True, grow=False,
        as_json=False,
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("onnxruntime-cpu int8: not measured. The bund") for line in lines)
    assert any(line.startswith("torch, eager: not measured. ") for line in lines)
    assert not any("│ onnxruntime-cpu int8" in line for line in lines)


@pytest.mark.parametrize("option", [("--backend", "tensorflow"), ("--precision", "fp4")])
def test_an_unknown_choice_is_one_sentence(tiny_bundle: Path, option: tuple[str, str]) -> None:
    result = bench("engines", "--bundle", tiny_bundle, *option)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"'{option[1]}'; use some of " in result.stderr
    assert result.stderr.count("\n") == 1


def test_nothing_to_measure_is_an_error_with_the_reasons(tiny_bundle: Path) -> None:
    result = bench(
        "engines", "--bundle", tiny_bundle, "--backend", "onnxruntime-cpu", "--precision", "int8",
        "--no-peers",
    )  # fmt: skip
    assert result.returncode == 1
    assert "Nothing could be measured: The bundle has no" in result.stderr


def test_no_child_outlives_a_benchmark_that_is_killed() -> None:
    """It would go on as a camera that nobody knows."""
    code = (
        "import time\n"
        "from vljepa_ros.bench.node import start_child\n"
        "print(start_child('timeit', 'import time; time.sleep(600)').pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < end, "the child goes on"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_contender_that_dies_ends_the_benchmark() -> None:
    child = bench_engines.Child("one", {"bundle": "/nowhere"})
    try:
        with pytest.raises(VLJepaError, match="'one' ended in the benchmark"):
            child.answer()
    finally:
        child.kill()


def test_each_step_brings_one_new_picture_of_each_camera(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    stream = Stream(bundle, 2)
    before = stream.advance()
    after = stream.advance()
    for old, new in zip(before, after):
        assert len(new) == bundle.clip.frames
        assert all(a is b for a, b in zip(old[1:], new[:-1]))
        assert all(new[-1] is not picture for picture in old)
    assert not np.array_equal(after[0][-1], after[1][-1])


def test_a_batch_is_what_it_says(tiny_bundle: Path) -> None:
    """Each row of a batch answers for its camera, so no camera was left out."""

    class Recording(EngineContender):
        shapes: list[tuple[int, ...]]

        def predict(self, tokens: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            answer = super().predict(tokens, ids, mask)
            self.shapes.append(answer.shape)
            return answer

    bundle = load_bundle(tiny_bundle)
    engines = Recording(bundle, "onnxruntime-cpu", "fp32", 1, lambda *_: None)
    engines.shapes = []
    timed = Bench(engines, bundle).time(STEP, cameras=3, queries=5, steps=4)
    engines.close()
    assert len(timed) == 4 and all(seconds > 0 for seconds in timed)
    assert engines.shapes == [(3, 5, 32)] * (4 + bench_contender.WARM)


def test_cosines_are_the_least_over_the_rows(tmp_path: Path) -> None:
    wanted = np.array([[[1.0, 0.0], [0.0, 2.0]]])
    np.savez(tmp_path / "wanted.npz", one=wanted, other=wanted)
    found = cosines({"one": np.array([[[3.0, 0.0], [1.0, 1.0]]])}, tmp_path / "wanted.npz")
    assert found == {"one": pytest.approx(2**-0.5)}


def test_torch_runs_the_weights_of_the_bundle(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[export]")
    from vljepa_ros.bench import torch_contender as bench_torch

    bundle = load_bundle(SHIPPED)
    wanted = tmp_path / "wanted.npz"
    engines = EngineContender(bundle, "onnxruntime-cpu", "fp32", 1, lambda *_: None)
    np.savez(wanted, **Bench(engines, bundle).answers())
    engines.close()
    contender = bench_torch.open_contender("torch", bundle, 1)
    same = cosines(Bench(contender, bundle).answers(), wanted)
    assert set(same) == {*PARTS, STEP, *([ANEW] if bundle.clip.chunks > 1 else [])}
    assert min(same.values()) > 0.9999


def test_saccadic_runs_the_weights_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the interface of saccadic 0.1.0, which needs a CUDA build to install."""
    torch = pytest.importorskip("torch", reason="torch is not installed: vljepa_ros[export]")
    from importlib.machinery import ModuleSpec
    from types import SimpleNamespace

    from vljepa_ros.bench import torch_contender as bench_torch

    class FrozenEncoder(torch.nn.Module):
        def __init__(self, backbone: Any, spec: Any, config: Any) -> None:
            super().__init__()
            self.backbone = backbone
            clip = bundle.clip
            assert (spec.frames, spec.resolution) == (clip.chunk, clip.image_size)
            assert config.device == "cpu"

        def forward(self, pixels: Any) -> Any:
            return self.backbone(pixel_values_videos=pixels).last_hidden_state

    def checkpoint(*args: Any, **kwargs: Any) -> SimpleNamespace:
        names = ("name", "hf_repo_id", "params_m", "frames", "resolution", "embed_dim")
        return SimpleNamespace(**dict(zip(names, args)), **kwargs)

    for name, parts in {
        "saccade": {},
        "saccade.config": {"ModelConfig": SimpleNamespace, "CheckpointSpec": checkpoint},
        "saccade.model": {"FrozenEncoder": FrozenEncoder},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(parts, __spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    bundle = load_bundle(SHIPPED)
    engines = EngineContender(bundle, "onnxruntime-cpu", "fp32", 1, lambda *_: None)
    np.savez(tmp_path / "wanted.npz", **Bench(engines, bundle).answers())
    engines.close()
    timed = Bench(bench_torch.open_contender("saccadic", bundle, 1), bundle)
    assert timed.tasks() == ["x_encoder"]
    assert cosines(timed.answers(), tmp_path / "wanted.npz")["x_encoder"] > 0.9999


def test_the_bench_s_camera_shows_what_the_shipped_bundle_tells_apart() -> None:
    """So that its decoder has something to say: a change at each change of the scene."""
    perceiver = Perceiver(Runtime(load_bundle(SHIPPED)), ["camera"], Settings())
    pictures, rate, changes = publisher.pictures(320, 240), 4, 0
    for k in range(round(4 * publisher.SCENE) * rate):
        picture = pictures[publisher.shown(k, rate)]
        stamp_ns = SECOND_NS + k * SECOND_NS // rate
        if perceiver.due("camera", stamp_ns).due and perceiver.take(
            "camera", stamp_ns, "", picture
        ):
            changes += sum(step.change is not None for step in perceiver.step(["camera"]))
    assert changes >= 4  # the first opens the stream


def test_saccadic_that_is_not_installed_is_a_sentence(tiny_bundle: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[export]")
    from vljepa_ros.bench import torch_contender as bench_torch

    with pytest.raises(EngineError, match="pip install"):
        bench_torch.open_contender("saccadic", load_bundle(tiny_bundle), 0)


# ---------------------------------------------------------------- cost


def test_flop_by_hand() -> None:
    """The paper's X-encoder: 24 layers of 1024, 1024 tokens, and 16 x 16 x 2 patches."""
    pytest.importorskip("transformers", reason="transformers is not installed: vljepa_ros[export]")
    from vljepa_ros.model.config import paper

    layer = 2 * 1024 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 2 * 1024**2 * 1024
    assert bench_flop.x_encoder(paper()) == 24 * layer + 2 * 1024 * (3 * 2 * 16 * 16) * 1024


def counted(network: Any, *inputs: Any) -> int:
    """FLOP of one run as torch counts them; its fused attention would count as nothing."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("chunk", [None, 2])
def test_flop_is_what_torch_counts(chunk: int | None) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: vljepa_ros[export]")
    from networks import tiny_config

    from vljepa_ros.model.networks import VLJepa

    config = tiny_config(x_encoder_chunk=chunk)
    model = VLJepa(config).eval()
    model.y_encoder.model.pooler = None  # no graph has it
    tokens = torch.zeros(1, config.visual_tokens, config.x_encoder_config.hidden_size)
    ids = torch.ones(3, config.query_length, dtype=torch.int64)
    text = torch.ones(1, config.text_length, dtype=torch.int64)
    frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    assert bench_flop.x_encoder(config) == counted(model.x_encoder, frames)
    assert bench_flop.predictor(config, 3) == counted(model.predictor, tokens, ids, ids)
    assert bench_flop.y_encoder(config) == counted(model.y_encoder, text, text)
    size = list(model.y_decoder.empty_cache(1).shape)
    past = torch.zeros(*size[:3], 5, size[4])
    newest, embedding = torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, config.embedding_dim)
    assert bench_flop.y_decoder(config, 5) == counted(model.y_decoder, embedding, newest, past)
    assert bench_flop.step(config, 4, 3) == 4 * (
        bench_flop.x_encoder(config) + bench_flop.predictor(config, 3)
    )


def test_flop_of_shared_keys_and_of_a_gemma_is_what_torch_counts() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: vljepa_ros[export]")
    from networks import tiny_config
    from transformers import Gemma3TextConfig, LlamaConfig

    from vljepa_ros.model.networks import VLJepa

    blocks = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    text = Gemma3TextConfig(
        vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=24, use_bidirectional_attention=True,
    )  # fmt: skip
    config = tiny_config(predictor_config=blocks, y_encoder_config=text, y_decoder_config=None)
    model = VLJepa(config).eval()
    tokens = torch.zeros(1, config.visual_tokens, config.x_encoder_config.hidden_size)
    ids = torch.ones(1, config.query_length, dtype=torch.int64)
    words = torch.ones(1, config.text_length, dtype=torch.int64)
    assert bench_flop.predictor(config) == counted(model.predictor, tokens, ids, ids)
    assert bench_flop.y_encoder(config) == counted(model.y_encoder, words, words)
    assert bench_flop.y_decoder(config, 5) == 0


def cost(*, run: bool | None = None, **given: str) -> None:
    from vljepa_ros.bench import cost as bench_cost

    options = {"preset": "tabletop", "frames": "8", "sizes": "", "cameras": "1", "queries": "1"}
    bench_cost.cost(
        **{**options, **given}, run=run, backend="onnxruntime-cpu", precision="fp32", threads=1,
        as_json=True,
    )  # fmt: skip


def test_cost_of_a_large_preset_is_only_counted(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[export]")
    cost(preset="open-vljepa", frames="16,32", cameras="1,4")
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(REPORTS["bench cost"])
    assert set(found["parts"]) == {"x_encoder", "predictor", "y_encoder"}
    assert found["parts"]["x_encoder"]["parameters"] == 303_885_312
    assert found["runs"] is None
    growth = found["growth"]
    assert list(growth["frames"]) == ["16", "32"]
    assert growth["cameras"]["4"]["gflop"] == pytest.approx(4 * growth["cameras"]["1"]["gflop"])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [({"preset": "huge"}, "use one of tabletop"), ({"frames": "7"}, "multiples of 2"),
     ({"sizes": "100"}, "multiples of 32"), ({"queries": "none"}, "must be numbers")],
)  # fmt: skip
def test_a_cost_that_cannot_be_counted_is_an_error(option: dict[str, str], sentence: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: vljepa_ros[export]")
    with pytest.raises(VLJepaError, match=sentence):
        cost(**option)


def test_cost_measures_networks_with_random_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[export]")
    from networks import tiny_config

    from vljepa_ros.bench import cost as bench_cost

    monkeypatch.setattr(bench_cost, "_presets", lambda: {"tiny": tiny_config})
    monkeypatch.setitem(bench_cost.PEAK_SIZE, "cpu", 64)
    cost(preset="tiny", frames="4", sizes="32", cameras="1,2", queries="1,3", run=True)
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == "onnxruntime-cpu (fp32)" and found["peak_gflop_per_s"] > 0
    for rows in found["growth"].values():
        for row in rows.values():
            assert row["gflop_per_s"] == pytest.approx(row["gflop"] / row["p50_ms"] * 1e3)
            assert row["share_of_peak"] == pytest.approx(
                row["gflop_per_s"] / found["peak_gflop_per_s"]
            )


# ---------------------------------------------------------------- moments


def test_a_store_finds_what_brute_force_finds() -> None:
    pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
    found = report("memory", "--moments", "1000", "--dim", "8", "--queries", "10")
    assert found["moments"] == 1000
    for name in ("everything", "camera", "time", "both"):
        assert found["store"][name]["recall@10"] > 0.99
        assert 0 < found["numpy"][name]["p50_ms"] <= found["numpy"][name]["p99_ms"]


# ---------------------------------------------------------------- machine and memory


def test_a_footprint_sees_what_a_process_takes() -> None:
    footprint = Footprint({"here": os.getpid(), "again": os.getpid()})
    footprint.sample()
    taken = np.ones(64 << 20, np.uint8)
    footprint.sample()
    del taken
    found = footprint.report()
    assert found["here"]["most_mb"] - found["here"]["start_mb"] == pytest.approx(64, abs=16)
    growth = (found["here"]["end_mb"] - found["here"]["start_mb"]) / found["here"]["start_mb"]
    assert found["here"]["largest_drift"] == pytest.approx(growth)
    assert found["here"]["late_drift"] == 0  # of the second half, here the last sample alone
    assert found["together"]["start_mb"] == pytest.approx(2 * found["here"]["start_mb"], rel=0.01)


def test_the_machine_is_described_in_a_line() -> None:
    found = machine()
    assert found["cores"] >= 1 and found["memory_gb"] > 0
    gpu = {"name": "Orin", "driver": "540.4", "clock": "918 MHz", "clock_most": "1300 MHz"}
    line = describe({**found, "board": "Orin", "power_mode": "", "gpu": gpu})
    assert "\n" not in line
    assert "Orin (power mode not known)" in line and "918 MHz of 1300 MHz" in line
    assert found["libraries"]["numpy"] == np.__version__


@pytest.mark.slow
def test_the_node_is_measured_with_a_decoder_that_decodes(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed: run scripts/setup")
    from graph import domain

    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain()))  # away from other tests' graphs
    words = ("--bundle", tiny_bundle, "--steps", "40", "--size", "64x48", "--rough")
    found = report("node", *words)
    assert found["steps"] >= 40 and found["stages_of_last"] == found["steps"]
    assert found["frames"]["oldest_ms"] > 0 and found["rough"]["rough"]["received"] > 0
    assert set(found["memory"]) == {"perception", "decoder", "together"}
    for row in found["memory"].values():
        assert row["start_mb"] > 0 and row["largest_drift"] >= 0
