"""`vljepa engines` as a user meets it: in a process of its own, on the made-up GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import FakeGpu, environment, fake_gpu  # noqa: F401, as fixtures
from json_records import check_record
from terminals import open_terminal
from typer.testing import CliRunner

from vljepa_ros.cli.engines import app
from vljepa_ros.errors import EngineError


def vljepa(
    folder: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with the fakes; `folder` keeps its engines and faults."""
    return subprocess.run(
        command(*arguments), env=environment(folder, **variables), text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def command(*arguments: str | Path) -> list[str]:
    code = "from vljepa_ros.cli import main; main()"
    return [sys.executable, "-c", code, "engines", *(str(a) for a in arguments)]


def listed(folder: Path) -> list[dict[str, object]]:
    result = vljepa(folder, "list", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for one in found:
        check_record("engines list", one)
    return found


def test_build_list_and_clean(tmp_path: Path, tiny_bundle: Path) -> None:
    built = vljepa(tmp_path, "build", "--bundle", tiny_bundle, "--precision", "fp32")
    assert built.returncode == 0, built.stderr
    lines = built.stdout.splitlines()
    parts = ["x_encoder", "predictor", "y_encoder", "y_decoder"]
    assert [line.split()[0] for line in lines] == parts
    for line in lines:
        assert "fp32  tensorrt 10.3.0  Fake Orin  cosine 1.00000" in line
        assert Path(line.split()[-1]).is_file()
    assert "x_encoder: Timing tactics" in built.stderr and "%" in built.stderr
    found = listed(tmp_path)
    assert sorted(str(one["graph"]) for one in found) == sorted(parts)
    assert all(one["problem"] == "" and one["megabytes"] for one in found)
    again = vljepa(tmp_path, "build", "--bundle", tiny_bundle, "--precision", "fp32")
    assert again.stdout == built.stdout and "Timing" not in again.stderr

    assert "tensorrt 10.3.0" in vljepa(tmp_path, "list").stdout
    assert vljepa(tmp_path, "clean").stdout.startswith("0 engines removed")
    later = vljepa(tmp_path, "clean", FAKE_TENSORRT_VERSION="10.4.0")
    assert later.stdout.startswith("4 engines removed")
    assert listed(tmp_path) == []
    assert "No engine is built yet" in vljepa(tmp_path, "list").stdout


def test_one_part_of_a_precision_and_what_the_library_made_of_it(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    file = tmp_path / "layers.json"
    result = vljepa(
        tmp_path, "build", "--bundle", tiny_bundle, "--backend", "tensorrt_rtx", "--part",
        "predictor", "--any-gpu", "--workspace", "64", "--inspect", file, "--profile", "B=1:1:2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (one,) = listed(tmp_path)
    assert one["workspace_mib"] == 64
    assert one["profile"] == {"B": [1, 1, 2], "Q": [1, 1, 16]}
    assert one["precision"] == "fp16" and one["gpu"] == "any"
    assert json.loads(file.read_text())["predictor"]["Layers"] == ["matmul"]


def test_without_a_gpu_rtx_builds_for_any(tmp_path: Path, tiny_bundle: Path) -> None:
    arguments = ("build", "--bundle", tiny_bundle, "--part", "predictor")
    result = vljepa(tmp_path, *arguments, FAKE_GPU_COUNT="0")
    assert result.returncode == 0, result.stderr
    assert "fp16  tensorrt_rtx 1.7.1  any  not compared" in result.stdout
    assert "No GPU can be used here" in result.stderr
    result = vljepa(tmp_path, *arguments, "--backend", "tensorrt", FAKE_GPU_COUNT="0")
    assert result.returncode == 1 and result.stdout == ""
    assert "builds engines for the GPU that is here, and there is none" in result.stderr
    result = vljepa(tmp_path, *arguments, "--inspect", tmp_path / "x", FAKE_GPU_COUNT="0")
    assert "--inspect looks at engines on the GPU" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--part", "z_encoder"), "no 'z_encoder'; its graphs are x_encoder"),
     (("--precision", "fp12"), "Unknown precision 'fp12'"),
     (("--backend", "onnxruntime-cpu"), "'onnxruntime-cpu' builds no engines"),
     (("--precision", "int8"), "The bundle has no 'x_encoder' in int8"),
     (("--backend", "tensorrt_rtx", "--any-version"), "load in other versions"),
     (("--profile", "B=8"), "takes e.g. B=1:1:4 and not 'B=8'"),
     (("--profile", "Z=1:1:1"), "No graph that is to be built has a size 'Z'"),
     (("--profile", "B=2:1:4"), "profile's B must be the least, usual and largest"),
     (("--profile", "S=1:1:1", "--part", "y_decoder"), "other bounds for B, not for 'S'")],
)  # fmt: skip
def test_what_cannot_be_built_is_one_sentence(
    fake_gpu: FakeGpu,  # noqa: F811
    tiny_bundle: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    result = CliRunner().invoke(app, ["build", "--bundle", str(tiny_bundle), *arguments])
    assert isinstance(result.exception, EngineError) and result.stdout == ""
    assert words in str(result.exception) and "\n" not in str(result.exception)
    assert not list(fake_gpu.engines.glob("*.plan"))


def test_a_failed_build_is_one_sentence(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "faults").write_text("parse")
    result = vljepa(tmp_path, "build", "--bundle", tiny_bundle, "--part", "predictor")
    assert result.returncode == 1
    assert "node layers.3.loop (Loop)" in result.stderr and "Traceback" not in result.stderr
    assert listed(tmp_path) == []


def test_a_damaged_engine_is_listed_and_removed(tmp_path: Path, tiny_bundle: Path) -> None:
    vljepa(tmp_path, "build", "--bundle", tiny_bundle, "--part", "predictor")
    (plan,) = (tmp_path / "engines").glob("*.plan")
    plan.write_bytes(b"short")
    (one,) = listed(tmp_path)
    assert "cut short" in str(one["problem"])
    assert vljepa(tmp_path, "clean").stdout.startswith("1 engine removed")
    assert not plan.exists()


def test_a_terminal_gets_a_bar(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "faults").write_text("hold")
    ours, theirs = open_terminal()
    with subprocess.Popen(
        command("build", "--bundle", tiny_bundle, "--part", "predictor"),
        env=environment(tmp_path, TERM="xterm", COLUMNS="100"), stdout=subprocess.PIPE,
        stderr=theirs, text=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        seen = b""
        while b"predictor: reading the graph" not in seen:
            seen += os.read(ours, 4096)
        (tmp_path / "faults").write_text("")
        output, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0 and output.startswith("predictor  fp16")
    assert "━".encode() in seen
