"""The command line as a user meets it: what starting it costs, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from gpu import environment
from json_records import check_record

from vljepa_ros import __version__
from vljepa_ros.cli.app import COMMANDS
from vljepa_ros.errors import counted

HEAVY = ("rclpy", "torch", "transformers", "onnxruntime", "cv2", "mujoco", "tensorrt")


def vljepa(*arguments: str | Path, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, where the modules in `without` do not import."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({list(without)!r}))\n"
        "from vljepa_ros.cli import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *(str(a) for a in arguments)],
        text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_it_starts_without_ros_torch_or_an_engine() -> None:
    result = vljepa("--version", without=HEAVY)
    assert (result.returncode, result.stdout) == (0, f"vljepa_ros {__version__}\n")
    code = "import sys, vljepa_ros.cli.app; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert not set(HEAVY) & set(loaded.split())


def test_help_names_every_command() -> None:
    result = vljepa("--help", without=HEAVY)
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert f" {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = vljepa(name, "--help", without=HEAVY)
    assert result.returncode == 0, result.stderr
    assert f"vljepa {name}" in result.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    result = vljepa("listem")
    assert result.returncode == 2
    assert "listem" in result.stderr


def test_an_error_is_one_sentence_and_no_traceback() -> None:
    result = vljepa("bundle", "show", "no-such-bundle")
    assert (result.returncode, result.stdout) == (1, "")
    assert "No bundle 'no-such-bundle'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_path_that_cannot_be_looked_at_is_one_sentence() -> None:
    result = vljepa("bundle", "show", "a" * 300)
    assert result.returncode == 1
    assert result.stderr == f"{'a' * 200}: File name too long; check the path.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "what?", "--timeout", "nan"),
        ("watch", "it falls", "--timeout", "inf"),
        ("watch", "it falls", "--threshold", "nan"),
        ("data", "--seconds", "inf"),
    ],
)
def test_no_bound_lets_a_number_through_that_is_none(arguments: tuple[str, ...]) -> None:
    result = vljepa(*arguments)
    assert result.returncode == 2
    assert f"Invalid value for '{arguments[-2]}'" in result.stderr


def test_doctor_looks_at_openvino_without_importing_it(tiny_bundle: Path) -> None:
    code = (
        "import sys\n"
        "from vljepa_ros.cli.doctor import doctor\n"
        "try:\n"
        f"    doctor({str(tiny_bundle)!r}, False)\n"
        "finally:\n"
        "    print('openvino' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "False"


def test_a_missing_library_of_its_own_is_named() -> None:
    result = vljepa("--version", without=["typer"])
    assert result.returncode == 1
    assert "needs the Python package typer" in result.stderr
    assert "Traceback" not in result.stderr


def test_listen_without_ros_says_what_to_do() -> None:
    result = vljepa("listen", without=["rclpy"])
    assert result.returncode == 1
    assert "scripts/env.sh" in result.stderr
    assert "Traceback" not in result.stderr


def test_bundle_show(tiny_bundle: Path) -> None:
    result = vljepa("bundle", "show", tiny_bundle, without=["onnxruntime", "rclpy", "torch"])
    assert result.returncode == 0, result.stderr
    for fact in (
        "tiny-1.0.0#", "32 numbers", "4 frames of 32 x 32 pixels", "x_encoder.onnx", "Apache-2.0",
        "frames B x 4 x 32 x 32 x 3 (uint8)",
    ):  # fmt: skip
        assert fact in result.stdout


@pytest.mark.parametrize("name", ["tabletop", "everyday"])
def test_bundle_show_is_for_people(name: str) -> None:
    """Sections with lists of lists, and numbers of all kinds."""
    result = vljepa("bundle", "show", name)
    assert result.returncode == 0, result.stderr
    assert re.search(r"[\[\]{}]|None|True|False", result.stdout) is None
    assert re.search(
        r"^clip +8 frames of \d+ x \d+ pixels, 4 a second \(1\.75 s\)", result.stdout, re.M
    )
    assert "predictor\n  file " in result.stdout


def test_counted() -> None:
    found = [counted(count, "frame") for count in (0, 1, 2, 1000)]
    assert found == ["0 frames", "1 frame", "2 frames", "1,000 frames"]


def test_bundle_verify(tiny_bundle: Path) -> None:
    result = vljepa("bundle", "verify", tiny_bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert "tiny-1.0.0#" in result.stdout


def test_bundle_verify_names_every_file_that_is_wrong(tmp_path: Path) -> None:
    from bundles import make_bundle

    folder = make_bundle(tmp_path / "altered")
    with (folder / "predictor.onnx").open("ab") as file:
        file.write(b"\0")
    (folder / "y_tokenizer.json").unlink()
    result = vljepa("bundle", "verify", folder)
    assert (result.returncode, result.stdout) == (1, "")
    problems = result.stderr.splitlines()
    assert len(problems) == 2
    assert any("predictor.onnx" in problem for problem in problems)
    assert any("y_tokenizer.json" in problem for problem in problems)


def doctor(bundle: Path, *without: str) -> tuple[int, dict[str, dict[str, str]], dict[str, object]]:
    result = vljepa("doctor", "--json", "--bundle", bundle, without=without)
    report = json.loads(result.stdout)
    check_record("doctor", report)
    return result.returncode, {check["name"]: check for check in report["checks"]}, report


def test_doctor_where_the_robot_can_run(tiny_bundle: Path) -> None:
    code, checks, report = doctor(tiny_bundle)
    assert (code, report["ok"]) == (0, True), report
    assert checks["interfaces"]["found"] == "8 messages, 6 services, 1 actions"
    assert "verified" in checks["bundle"]["found"]
    assert str(report["would_run"]).startswith("onnxruntime")


@pytest.mark.parametrize("module", ["rclpy", "cv2", "tokenizers"])
def test_doctor_without_something_that_the_robot_needs(tiny_bundle: Path, module: str) -> None:
    code, checks, report = doctor(tiny_bundle, module)
    assert (code, report["ok"]) == (1, False)
    broken = [check for check in checks.values() if check["state"] == "broken"]
    assert broken
    assert all(check["fix"] for check in broken)


def test_doctor_without_any_backend(tiny_bundle: Path) -> None:
    code, _, report = doctor(tiny_bundle, "onnxruntime")
    assert (code, report["would_run"]) == (1, None)


def test_doctor_says_which_engines_are_still_to_be_built(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(tmp_path).items():  # of a machine with a GPU
        monkeypatch.setenv(name, value)
    code, _, report = doctor(tiny_bundle)
    assert (code, report["would_run"]) == (0, "tensorrt")
    backends: list[dict[str, str]] = report["backends"]
    assert "still to be built (x_encoder, predictor" in backends[0]["found"]
    assert "vljepa engines build --backend tensorrt" in backends[0]["fix"]
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "10.0.1")
    _, _, report = doctor(tiny_bundle)
    backends = report["backends"]
    assert "tensorrt is 10.0.1" in backends[0]["found"] and "JetPack" in backends[0]["fix"]
    assert report["would_run"] == "tensorrt_rtx"
    monkeypatch.setenv("FAKE_GPU_COUNT", "0")
    _, _, report = doctor(tiny_bundle)
    backends = report["backends"]
    assert "NVIDIA GPU" in backends[0]["found"] and "nvidia-smi" in backends[0]["fix"]
    assert str(report["would_run"]).startswith("onnxruntime")


def test_doctor_needs_no_torch(tiny_bundle: Path) -> None:
    code, _, _ = doctor(tiny_bundle, "torch", "transformers")
    assert code == 0


def test_doctor_with_a_bundle_that_is_not_what_it_says(tmp_path: Path) -> None:
    from bundles import make_bundle

    folder = make_bundle(tmp_path / "altered")
    manifest = yaml.safe_load((folder / "bundle.yaml").read_text())
    manifest["graphs"]["x_encoder"]["sha256"] = "0" * 64
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    code, checks, _ = doctor(folder)
    assert code == 1
    assert "x_encoder.onnx" in checks["bundle"]["found"]


def test_doctor_for_people_says_the_same(tiny_bundle: Path) -> None:
    result = vljepa("doctor", "--bundle", tiny_bundle)
    assert result.returncode == 0, result.stdout
    assert "The robot can run here, on onnxruntime" in result.stdout
    assert "[" not in result.stdout.split("\n")[0]  # no markup left over
