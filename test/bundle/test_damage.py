"""Any damage to a manifest gives a sentence, or a bundle that says what its schema asks for."""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import make_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from vljepa_ros.bundle.manifest import listed_files
from vljepa_ros.bundle.spec import Bundle, BundleError, file_problems, load_bundle, parse

# What PyYAML's constructors stumble over, what makes small files large, and what is no text.
TOKENS = [
    "2001-99-99", "!!timestamp x", "!!int x", "!!bool maybe", "!!float q", '!!binary "*"',
    "[" * 3000, "&a [*a]", "*a", "<<: {name: x}", "0x" + "f" * 5000, "9" * 5000, "? [a]", "- ",
    "{", "}", "\n", "\n\n ", "%YAML 9.9", "---", "\x00", "\x85", "\u2028", "\ufeff", "~", ".inf",
    "-.nan", "1e5", "yes", "!!set {a}", "!!python/none", "\t", ": ", "#", "'", '"',
]  # fmt: skip
VALUES = [
    None, 0, -1, 1, 10**400, 1.5, math.nan, math.inf, -0.0, "", "x", "../x", "a\0b", "a" * 5000,
    "é\u2028", "{}{}", True, [], {}, [None], {1: 2}, {None: None}, {"file": 3}, [[1]], b"x",
    {"a": {"b": 1}}, datetime.date(2026, 1, 1),
]  # fmt: skip
KEYS = [1, None, True, "x", "y_encoder", "../q", "int8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    """As it stands; what changes it changes a copy."""
    whole = yaml.safe_load((folder / "bundle.yaml").read_text())
    return {**whole, "source": {"seed": 1}, "evaluation": {"accuracy": 0.5}}


def holds(bundle: Bundle) -> None:
    """The values of a bundle are what they are used as."""
    assert bundle.clip.frames > 0 and bundle.clip.span_ns >= 0 and bundle.embedding_dim > 0
    numbers = [*vars(bundle.thresholds).values(), bundle.temperature, bundle.tolerance]
    assert all(type(number) is float and math.isfinite(number) for number in numbers)
    assert all(text.count("{}") == 1 for text in bundle.templates.values())
    assert type(bundle.source) is dict and type(bundle.evaluation) is dict
    for path, sha256 in listed_files(bundle.manifest, bundle.path / "bundle.yaml"):
        assert path.is_relative_to(bundle.path) and type(sha256) is str
    assert all(type(problem) is str for problem in file_problems(bundle))


def sentence(error: BundleError) -> None:
    assert "bundle.yaml" in str(error) and "\n" not in str(error)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of the manifest."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inner:
        yield (*path, key)
        if isinstance(below, (dict, list)):
            yield from places(below, (*path, key))


def change(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(manifest)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def judge(folder: Path, manifest: dict[str, Any]) -> None:
    try:
        holds(parse(folder, manifest, "0" * 64))
    except BundleError as error:
        sentence(error)


def test_any_value_anywhere(folder: Path, manifest: dict[str, Any]) -> None:
    for path in places(manifest):
        for value in VALUES:
            judge(folder, change(manifest, path, value))


@given(st.data())
@settings(deadline=None)
def test_keys_that_are_new_or_gone(folder: Path, manifest: dict[str, Any], data: Any) -> None:
    path = data.draw(st.sampled_from(list(places(manifest))))
    changed = copy.deepcopy(manifest)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if isinstance(inner, dict):
        inner[data.draw(st.sampled_from(KEYS))] = data.draw(st.sampled_from(VALUES))
    if data.draw(st.booleans()):
        del inner[path[-1]]
    judge(folder, changed)


PATCHES = st.tuples(st.floats(0, 1), st.sampled_from(TOKENS), st.integers(0, 30))


@given(st.lists(PATCHES, max_size=3), st.floats(0.5, 1))
@settings(max_examples=60, deadline=None)
def test_any_text(folder: Path, patches: list[tuple[float, str, int]], length: float) -> None:
    text = (folder / "bundle.yaml").read_text()
    for place, token, instead in patches:
        at = int(place * len(text))
        text = text[:at] + token + text[at + instead :]
    load(folder, text[: int(length * len(text))].encode())


@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_bytes(folder: Path, patches: list[tuple[float, bytes]]) -> None:
    content = bytearray((folder / "bundle.yaml").read_bytes())
    for place, patch in patches:
        at = int(place * len(content))
        content[at : at + len(patch)] = patch
    load(folder, bytes(content))


@pytest.mark.parametrize("token", TOKENS)
def test_any_value_in_the_text(folder: Path, token: str) -> None:
    text = (folder / "bundle.yaml").read_text()
    load(folder, text.replace("version: 1.0.0", f"version: {token}").encode())


def load(folder: Path, content: bytes) -> None:
    """Load the manifest `content`; the one that is there comes back."""
    file = folder / "bundle.yaml"
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        holds(load_bundle(folder, verify=False))
    except BundleError as error:
        sentence(error)
    finally:
        file.write_bytes(whole)


def test_a_small_file_cannot_become_large(folder: Path) -> None:
    """Every line merges the one before it twice."""
    lines = [
        "a0: &a0 {x: 1}",
        *(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}" for k in range(1, 40)),
    ]
    nested = ["b0: &b0 [x]", *(f"b{k}: &b{k} [*b{k - 1}, *b{k - 1}]" for k in range(1, 60))]
    file = folder / "bundle.yaml"
    whole = file.read_text()
    try:
        for added, said in (
            (lines, "not valid YAML"),
            ([*nested, "name: *b59"], "'name' must be of"),
        ):
            file.write_text("\n".join([whole, *added]))
            with pytest.raises(BundleError, match=said) as refusal:
                load_bundle(folder)
            assert len(str(refusal.value)) < 1000
    finally:
        file.write_text(whole)


def test_what_is_far_too_large_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "bundle.yaml").write_text("- a\n" * 100_000)
    with pytest.raises(BundleError, match="larger than 256 KiB"):
        load_bundle(tmp_path)
