"""docs/bundle-format.md lists every key that the code reads, and says which ones it requires."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vljepa_ros.bundle.manifest import Section, listed_files, read_manifest
from vljepa_ros.bundle.spec import BundleError, parse

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bundle-format.md").read_text("utf-8")
KEYS = {
    key: required.split(":")[0] != "no"
    for key, required in re.findall(r"^\| `([\w.<>]+)` \| (yes|no|no: .+?|with .+?) \|", PAGE, re.M)
}
GRAPH = "graphs.<graph>"


EXAMPLE = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)[0])


def general(path: str) -> str:
    """A key of a manifest as the page writes it."""
    for pattern, name in (
        (r"^graphs\.\w+(?=\.)", GRAPH),
        (r"(?<=puts\.)\w+", "<tensor>"),
        (r"(?<=variants\.)\w+", "<precision>"),
        (r"(?<=profile\.)\w+", "<size>"),
        (r"(?<=^templates\.).+", "<name>"),
        (r"(?<=^files\.).+", "<file>"),
    ):
        path = re.sub(pattern, name, path)
    return path


def paths(manifest: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of the manifest, with those above it."""
    for key, value in manifest.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def read(manifest: dict[str, Any], folder: Path) -> None:
    """All that the code reads of a manifest."""
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    found, digest = read_manifest(folder)
    parse(folder, found, digest)
    list(listed_files(found, folder / "bundle.yaml"))


def test_the_example_holds_the_keys_of_the_table() -> None:
    inside = {general(".".join(path)) for path in paths(EXAMPLE)}
    described = {key for key in inside if not re.match(r"(source|evaluation)\.", key)}
    assert described == set(KEYS)


def test_the_keys_are_those_that_the_code_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"schema"}  # which is read before there are sections
    get, optional = Section.get, Section.optional

    def note(self: Section, key: str) -> None:
        asked.add(general(self._name(key)))

    def noted_get(self: Section, key: str, *arguments: Any) -> Any:
        note(self, key)
        return get(self, key, *arguments)

    def noted_optional(self: Section, key: str) -> Section:
        note(self, key)
        return optional(self, key)

    monkeypatch.setattr(Section, "get", noted_get)
    monkeypatch.setattr(Section, "optional", noted_optional)
    read(EXAMPLE, tmp_path)
    assert asked == set(KEYS)


@pytest.mark.parametrize("path", list(paths(EXAMPLE)), ids=".".join)
def test_what_is_required_and_nothing_else_is_missed(path: tuple[str, ...], tmp_path: Path) -> None:
    manifest = copy.deepcopy(EXAMPLE)
    section = manifest
    for key in path[:-1]:
        section = section[key]
    del section[path[-1]]
    required = KEYS.get(general(".".join(path)), False)
    if required:
        with pytest.raises(BundleError, match=re.escape(path[-1])):
            read(manifest, tmp_path)
    else:
        read(manifest, tmp_path)
