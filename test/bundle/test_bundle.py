"""Bundles: what loads, what does not, and whether the error says which file and why."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import make_bundle

from vljepa_ros.bundle.locate import find_bundle, find_folder
from vljepa_ros.bundle.manifest import write_manifest
from vljepa_ros.bundle.spec import BundleError, load_bundle
from vljepa_ros.inference.verify import verify_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest without touching the hashes of the files."""
    file = folder / "bundle.yaml"
    manifest = yaml.safe_load(file.read_text())
    change(manifest)
    file.write_text(yaml.safe_dump(manifest))


def test_a_good_bundle_loads_and_verifies(folder: Path) -> None:
    bundle = load_bundle(folder)
    digest = hashlib.sha256((folder / "bundle.yaml").read_bytes()).hexdigest()
    assert bundle.model_id == f"tiny-1.0.0#{digest[:8]}"
    assert (bundle.clip.frames, bundle.clip.period_ns, bundle.clip.span_ns) == (
        4, 250_000_000, 750_000_000,
    )  # fmt: skip
    assert bundle.query.default == "What is happening?"
    assert bundle.decoder is not None and bundle.decoder.layers == 1
    assert bundle.graphs["predictor"].inputs["query_ids"].shape == ("Q", 12)
    assert verify_bundle(folder) == []


def test_the_same_seed_gives_the_same_model_id(folder: Path, tmp_path: Path) -> None:
    again = make_bundle(tmp_path / "again")
    other = make_bundle(tmp_path / "other", seed=9)
    assert load_bundle(again).model_id == load_bundle(folder).model_id
    assert load_bundle(other).model_id != load_bundle(folder).model_id


def test_the_decoder_is_optional(tmp_path: Path) -> None:
    assert load_bundle(make_bundle(tmp_path, decoder=False)).decoder is None


@pytest.mark.parametrize(("chunk", "tokens"), [(1, 16), (2, 16), (4, 32), (None, 32)])
def test_a_clip_may_be_taken_in_chunks(tmp_path: Path, chunk: int | None, tokens: int) -> None:
    bundle = load_bundle(make_bundle(tmp_path, chunk=chunk))
    assert bundle.clip.chunk == (chunk or 4) and bundle.clip.chunks == 4 // (chunk or 4)
    assert bundle.graphs["x_encoder"].inputs["frames"].shape[1] == bundle.clip.chunk
    assert bundle.graphs["x_encoder"].outputs["visual_tokens"].shape[1] == tokens
    assert verify_bundle(tmp_path) == []


def test_the_query_is_optional(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, query=False))
    assert bundle.query is None and list(bundle.graphs["predictor"].inputs) == ["visual_tokens"]
    assert verify_bundle(tmp_path) == []


@pytest.mark.parametrize(("chunk", "words"), [
    (3, "4 clip frames do not divide into chunks of 3"),
    (1, "1 frames of a chunk do not divide into tubelets of 2"),
    (4, r"'frames' of 'x_encoder' is \['B', 2, .* ask for 4 where it has 2"),
    (0, "'clip.chunk' must be above 0"),
    ("2", "'clip.chunk' must be of type int"),
])  # fmt: skip
def test_a_wrong_chunk_says_what_is_wrong(tmp_path: Path, chunk: object, words: str) -> None:
    edit(make_bundle(tmp_path, chunk=2), lambda m: m["clip"].update(chunk=chunk))
    with pytest.raises(BundleError, match=words) as error:
        load_bundle(tmp_path)
    assert "bundle.yaml" in str(error.value)


def test_a_predictor_for_another_number_of_chunks_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path, chunk=2)
    edit(tmp_path, lambda m: m["graphs"]["predictor"]["inputs"]["visual_tokens"].update(
        shape=["B", 16, 16]))  # fmt: skip
    with pytest.raises(BundleError, match=r"'visual_tokens' of 'predictor'.*32 where it has 16"):
        load_bundle(tmp_path)


def test_a_query_that_only_one_side_knows_of_is_refused(tmp_path: Path) -> None:
    asked, unasked = make_bundle(tmp_path / "asked"), make_bundle(tmp_path / "not", query=False)
    section = yaml.safe_load((asked / "bundle.yaml").read_text())["query"]
    edit(asked, lambda m: m.pop("query"))
    with pytest.raises(BundleError, match=r"'query_ids' and 'query_mask'.*no section 'query'"):
        load_bundle(asked)
    # Nor does it help to leave the inputs out of the manifest, when it comes to running it.
    edit(asked, lambda m: [m["graphs"]["predictor"]["inputs"].pop(f"query_{key}")
                           for key in ("ids", "mask")])  # fmt: skip
    edit(asked, lambda m: m["graphs"]["predictor"]["outputs"]["embedding"].update(
        shape=["B", 1, 32]))  # fmt: skip
    (problem,) = verify_bundle(asked)
    assert "'predictor' the inputs ['visual_tokens'], and the graph has" in problem
    edit(unasked, lambda m: m.update(query=section))
    with pytest.raises(BundleError, match="section 'query', and the predictor takes neither"):
        load_bundle(unasked)


@pytest.mark.parametrize("name", ["x_encoder.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "altered", "truncated"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "altered":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=name) as error:
        load_bundle(folder)
    assert str(error.value) in verify_bundle(folder)
    assert "fetch the bundle again" in str(error.value)


def test_verify_names_every_damaged_file(folder: Path) -> None:
    (folder / "x_encoder.onnx").unlink()
    (folder / "tokenizer.json").write_text("{}")
    problems = verify_bundle(folder)
    assert len(problems) == 2
    assert "x_encoder.onnx" in problems[0] and "tokenizer.json" in problems[1]
    with pytest.raises(BundleError, match="1 more problem"):
        load_bundle(folder)


def test_verification_can_be_left_out(folder: Path) -> None:
    (folder / "x_encoder.onnx").write_bytes(b"")
    assert load_bundle(folder, verify=False).name == "tiny"


def test_weights_beside_a_graph_must_be_listed(folder: Path) -> None:
    (folder / "x_encoder.onnx.data").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"x_encoder\.onnx\.data is not listed"):
        load_bundle(folder)


def test_a_graph_that_is_not_what_the_manifest_says_is_found(folder: Path) -> None:
    def swap(m: dict[str, Any]) -> None:
        graphs = m["graphs"]
        one, other = graphs["y_encoder"], graphs["predictor"]
        for key in ("file", "sha256"):
            one[key], other[key] = other[key], one[key]

    edit(folder, swap)
    problems = verify_bundle(folder)
    assert len(problems) == 2
    assert "y_encoder.onnx" in problems[0] and "'predictor'" in problems[0]


def test_a_tokenizer_must_be_listed(folder: Path) -> None:
    edit(folder, lambda m: m["files"].pop("tokenizer.json"))
    with pytest.raises(BundleError, match=r"/tokenizer\.json is not listed"):
        load_bundle(folder)


def test_verify_opens_the_tokenizers(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, yaml.safe_load((folder / "bundle.yaml").read_text()))
    problems = verify_bundle(folder)
    assert len(problems) == 1 and "tokenizer.json is not a tokenizer file" in problems[0]


Mutation = Callable[[dict[str, Any]], object]
MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "schema": (lambda m: m.update(schema=2), "schema 2"),
    "no schema": (lambda m: m.pop("schema"), "schema None"),
    "no name": (lambda m: m.pop("name"), "'name' is missing"),
    "number as version": (lambda m: m.update(version=1.0), "put it in quotes"),
    "no clip": (lambda m: m.pop("clip"), "'clip' is missing"),
    "clip is a list": (lambda m: m.update(clip=[1]), "'clip' must be"),
    "zero frames": (lambda m: m["clip"].update(frames=0), "clip.frames' must be above 0"),
    "odd frames": (lambda m: m["clip"].update(frames=3), "tubelets"),
    "image size": (lambda m: m["clip"].update(image_size=64), "asks? for 64"),
    "embedding": (lambda m: m.update(embedding_dim=64), "embedding"),
    "text for a number": (lambda m: m["thresholds"].update(gate="3"), "thresholds.gate"),
    "crop": (lambda m: m["preprocess"].update(crop="left"), "only 'centre'"),
    "resize": (lambda m: m["preprocess"].update(resize="pad"), "use one of shorter_side, squash"),
    "resample": (lambda m: m["preprocess"].update(resample="cubic"), "use one of area, bilinear"),
    "template": (lambda m: m["templates"].update(classify="a video"), "templates.classify"),
    "unknown graph": (lambda m: m["graphs"].update(z=m["graphs"]["y_encoder"]), "graph 'z'"),
    "graph missing": (lambda m: m["graphs"].pop("predictor"), "'predictor' is missing"),
    "input missing": (
        lambda m: m["graphs"]["predictor"]["inputs"].pop("query_mask"),
        r"graphs\.predictor\.inputs",
    ),
    "dtype": (
        lambda m: m["graphs"]["x_encoder"]["inputs"]["frames"].update(dtype="uint9"),
        "'uint9'",
    ),
    "shape": (
        lambda m: m["graphs"]["x_encoder"]["inputs"]["frames"].update(shape=["B", 4, 32, 32, 0]),
        "above 0",
    ),
    "cache": (lambda m: m["decoder"].update(heads=3), "'past' of 'y_decoder'"),
    "no decoder section": (lambda m: m.pop("decoder"), "'decoder' is missing"),
    "path upwards": (lambda m: m["query"].update(tokenizer="../t.json"), r"'\.\./t\.json'"),
    "absolute path": (
        lambda m: m["graphs"]["x_encoder"].update(file="/etc/passwd"),
        "'/etc/passwd' leads out",
    ),
    "hidden path": (lambda m: m["files"].update({"a/../../b": "0"}), "leads out"),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_a_wrong_manifest_says_what_is_wrong(folder: Path, case: str) -> None:
    change, words = MUTATIONS[case]
    edit(folder, change)
    with pytest.raises(BundleError, match=words) as error:
        load_bundle(folder)
    assert "bundle.yaml" in str(error.value)
    assert verify_bundle(folder) == [str(error.value)]


@pytest.mark.parametrize("content", ["a: [", "\t", "- 1\n- 2", "", "!!python/object:os.x {}"])
def test_what_is_not_a_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / "bundle.yaml").write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.yaml"):
        load_bundle(folder)


def test_bytes_that_are_not_text_are_refused(folder: Path) -> None:
    (folder / "bundle.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(BundleError, match="not valid YAML"):
        load_bundle(folder)


def test_a_failed_write_keeps_the_old_manifest(folder: Path) -> None:
    before = (folder / "bundle.yaml").read_bytes()
    manifest = yaml.safe_load(before)
    manifest["files"]["absent.json"] = ""
    with pytest.raises(BundleError, match=r"absent\.json"):
        write_manifest(folder, manifest)
    assert (folder / "bundle.yaml").read_bytes() == before
    assert not list(folder.glob(".bundle*"))


def test_writing_a_manifest_makes_an_edited_bundle_whole(folder: Path) -> None:
    manifest = yaml.safe_load((folder / "bundle.yaml").read_text())
    manifest["evaluation"] = {"accuracy": 0.5}
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    assert write_manifest(folder, manifest) == folder / "bundle.yaml"
    assert load_bundle(folder).evaluation == {"accuracy": 0.5}


def test_bundles_are_found_by_folder_and_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_bundle(str(folder)) == folder
    monkeypatch.setenv("VLJEPA_BUNDLES", f"/nowhere:{folder.parent}")
    assert find_bundle("tiny") == folder
    monkeypatch.delenv("VLJEPA_BUNDLES")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(folder.parent / "prefix"))
    installed = make_bundle(folder.parent / "prefix/share/vljepa_ros/engines/installed")
    assert find_bundle("installed") == installed


def test_a_folder_of_the_same_name_does_not_hide_a_bundle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("VLJEPA_BUNDLES", str(folder.parent))
    assert find_bundle("tiny") == folder


@pytest.mark.parametrize("source", ["no-such-bundle", "/no/such/folder", "a/b/c", "../x"])
def test_an_unknown_bundle_is_refused(source: str) -> None:
    with pytest.raises(BundleError, match="No bundle"):
        find_bundle(source)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle\.yaml"):
        find_bundle(str(tmp_path))


def test_a_hub_id_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str] | None]] = []

    def snapshot_download(
        repo_id: str, revision: str | None = None, allow_patterns: list[str] | None = None
    ) -> str:
        asked.append((repo_id, revision, allow_patterns))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert load_bundle("owner/model").name == "tiny"
    assert find_bundle("owner/model@v1.0") == folder
    assert find_folder("owner/other", ("*.json",)) == folder
    assert find_folder(str(folder), ("*.json",)) == folder
    assert asked == [
        ("owner/model", None, None),
        ("owner/model", "v1.0", None),
        ("owner/other", None, ["*.json"]),
    ]
    with pytest.raises(BundleError, match="neither a folder nor a Hub id"):
        find_folder("no such folder", ())


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, **_: object) -> str:
        raise ConnectionError("no route to host\nlong story")

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(BundleError, match=r"could not be fetched.*no route to host") as error:
        find_bundle("owner/model")
    assert "\n" not in str(error.value)


def test_without_the_hub_client_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match="pip install huggingface_hub"):
        find_bundle("owner/model")
