"""`vljepa export`: what it hands on of what it was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vljepa_ros.cli.app import app
from vljepa_ros.errors import VLJepaError
from vljepa_ros.model.export import public
from vljepa_ros.training import finetune_export, release
from vljepa_ros.training.base import BASE
from vljepa_ros.training.site.learn import SITE
from vljepa_ros.training.words.export import STAGE

MARKS = {"words": Path(STAGE) / BASE, "tuned": Path(BASE), "site": Path(SITE)}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the export of a training, or of a fine-tuning, was told: by parameter."""
    found: dict[str, Any] = {}

    def released(run, data, out, version, video, storage, fp8):
        found.update(kind="training", out=out, version=version, storage=storage, fp8=fp8)
        return {}

    def tuned(run, out, version, storage, fp8):
        found.update(kind="fine-tuning", out=out, version=version, storage=storage, fp8=fp8)
        return {}

    monkeypatch.setattr(release, "release", released)
    monkeypatch.setattr(finetune_export, "export_finetuned", tuned)
    return found


@pytest.mark.parametrize("kind", ["training", "fine-tuning"])
@pytest.mark.parametrize(
    ("options", "storage", "fp8"),
    [([], "fp16", False), (["--precision", "bf16"], "bf16", False),
     (["--fp8", "--precision", "fp32"], "fp32", True)],
)  # fmt: skip
def test_precision_and_variants_are_handed_on(
    tmp_path: Path, told: dict[str, Any], kind: str, options: list[str], storage: str, fp8: bool
):
    if kind == "fine-tuning":
        (tmp_path / BASE).write_text("{}")
    out = tmp_path / "bundle"
    result = CliRunner().invoke(app, ["export", str(tmp_path), str(out), *options])
    assert result.exit_code == 0, result.output
    assert told == {
        "kind": kind, "out": out, "version": "1.0.0", "storage": storage, "fp8": fp8,
    }  # fmt: skip


def test_a_public_checkpoint_is_kept_in_the_precision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = []
    monkeypatch.setattr(public, "load_open_vljepa", lambda *folders: "loaded")
    monkeypatch.setattr(
        public, "export_public", lambda *given: kept.append(given) or tmp_path / "bundle"
    )
    monkeypatch.setattr("vljepa_ros.bundle.locate.find_folder", lambda *_: tmp_path)
    (tmp_path / "best.pt").write_bytes(b"")
    parts = [f"--{part}" for part in ("checkpoint", "x-encoder", "llama", "gemma")]
    given = [text for part in parts for text in (part, str(tmp_path))]
    given += ["--out", str(tmp_path / "out"), "--precision", "bf16"]
    result = CliRunner().invoke(app, ["export", "--from", "open-vljepa", *given])
    assert result.exit_code == 0, result.output
    assert kept == [("loaded", tmp_path / "out", "1.0.0", "bf16")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--from open-vljepa --fp8", "--fp8 is for an export of a training on the table or of a "
         "fine-tuning, and this would be one with --from open-vljepa: leave it out."),
        ("--from hf --precision fp32", "one with --from hf"),
        ("--from everyday --folder .", "one with --from everyday"),
        ("--from clip --x-encoder X", "--x-encoder is for an export with --from open-vljepa or "
         "with --from hf, and this would be one with --from clip"),
        ("--people X", "one of a training on the table"),
        ("words --fp8", "one of a training of words"),
        ("tuned --video X.mp4", "one of a fine-tuning"),
        ("site --fp8", "one of a training from an image encoder"),
    ],
)  # fmt: skip
def test_what_an_export_would_pass_over_is_refused(tmp_path: Path, options: str, said: str):
    kind, *_ = given = options.split()
    if kind in MARKS:  # what tells one kind of training from another
        given.pop(0)
        (tmp_path / MARKS[kind]).parent.mkdir(exist_ok=True)
        (tmp_path / MARKS[kind]).write_text("{}")
    result = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "out"), *given])
    assert isinstance(result.exception, VLJepaError), result.output
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()
