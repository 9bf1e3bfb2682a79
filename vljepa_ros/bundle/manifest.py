"""Reads and writes `bundle.yaml`, the manifest of a model bundle.

Invariant: every file that a manifest names lies inside the bundle's folder and has a sha256.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import reprlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from vljepa_ros.errors import BundleError

MANIFEST = "bundle.yaml"
SCHEMA = 1
LARGEST = 1 << 18  # bytes; the shipped manifest has 9000

T = TypeVar("T")


def shown(value: object) -> str:
    """A value of the manifest for a sentence: Python's way of writing it, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # of an int, from Python 3.11 on
        return "a number of thousands of digits"


class Section:
    """One mapping of the manifest, read key by key; errors name the file and the key."""

    def __init__(self, values: Any, file: Path, where: str = "") -> None:
        if not isinstance(values, dict):
            raise BundleError(f"{file}: '{where or 'the manifest'}' must be a mapping.")
        for key in values:
            if not isinstance(key, str):
                raise BundleError(
                    f"{file}: the key {shown(key)} of '{where or 'the manifest'}' must be a text; "
                    "put it in quotes."
                )
        self.values: dict[str, Any] = values
        self.file = file
        self.where = where

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`, of type `kind` (an int passes for a float); BundleError if not."""
        value = self.values.get(key, default)
        if value is None:
            raise BundleError(f"{self.file}: '{self._name(key)}' is missing.")
        if kind is float and type(value) is int and abs(value) < 1 << 1000:
            value = float(value)
        if type(value) is not kind:
            hint = " (put it in quotes)" if kind is str else ""
            raise BundleError(
                f"{self.file}: '{self._name(key)}' must be of type {kind.__name__}{hint}, "
                f"not {shown(value)}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise BundleError(f"{self.file}: '{self._name(key)}' must be finite, not {value}.")
        return value

    def positive(self, key: str, kind: type[T]) -> T:
        """A number above zero."""
        value = self.get(key, kind)
        if not value > 0:  # type: ignore[operator]
            raise BundleError(
                f"{self.file}: '{self._name(key)}' must be above 0, not {shown(value)}."
            )
        return value

    def template(self, key: str, default: str | None = None) -> str:
        """A text with exactly one '{}' where the words go."""
        value = self.get(key, str, default)
        if value.count("{}") != 1:
            raise BundleError(
                f"{self.file}: '{self._name(key)}' must hold '{{}}' once, not {shown(value)}."
            )
        return value

    def section(self, key: str) -> Section:
        return Section(self.get(key, dict), self.file, self._name(key))

    def optional(self, key: str) -> Section:
        """The mapping of `key`, empty where there is none."""
        return Section(self.values.get(key, {}), self.file, self._name(key))

    def inside(self, key: str) -> Path:
        """The path of a file named by `key`, inside the bundle's folder."""
        return inside(self.file, self.get(key, str))


def inside(manifest_file: Path, name: str) -> Path:
    """The path of the file `name` of a bundle; BundleError if the name leads out of the folder.

    Only the name is judged: files of a Hub snapshot are links into the Hub's own cache.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise BundleError(
            f"{manifest_file}: the file name '{name}' leads out of the bundle's folder; "
            "name files relative to the folder, without '..'."
        )
    return manifest_file.parent / pure


class _Loader(yaml.SafeLoader):
    """YAML without merge keys (<<), which can make a small file very large."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """The manifest of the bundle in `folder` and the sha256 of its bytes, in hex."""
    file = folder / MANIFEST
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a model bundle: it holds no {MANIFEST}.") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}.") from error
    if len(content) > LARGEST:
        raise BundleError(f"{file} is larger than {LARGEST >> 10} KiB; it is not a manifest.")
    try:
        manifest = yaml.load(content, _Loader)
    except Exception as error:  # its constructors let errors of Python through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{file} is not valid YAML: {reason}.") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{file} holds no mapping; it is not the manifest of a bundle.")
    if manifest.get("schema") != SCHEMA:
        raise BundleError(
            f"{file} has schema {shown(manifest.get('schema'))}, and this version of vljepa_ros "
            f"reads schema {SCHEMA}; use a bundle and a vljepa_ros that belong together."
        )
    return manifest, hashlib.sha256(content).hexdigest()


def listed_files(manifest: dict[str, Any], file: Path) -> Iterator[tuple[Path, str]]:
    """Path and sha256 of every file that the manifest lists: graphs with variants, then `files`."""
    root = Section(manifest, file)
    graphs = root.section("graphs")
    for name in graphs.values:
        graph = graphs.section(name)
        yield graph.inside("file"), graph.get("sha256", str)
        variants = graph.optional("variants")
        for precision in variants.values:
            variant = variants.section(precision)
            yield variant.inside("file"), variant.get("sha256", str)
    files = root.optional("files")
    for name in files.values:
        yield inside(file, name), files.get(name, str)


def sha256_of(file: Path) -> str:
    """The sha256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_problem(path: Path, sha256: str) -> str | None:
    """What is wrong with a listed file, in a sentence, or None."""
    try:
        if not path.is_file():
            return f"{path} is missing; fetch the bundle again."
        actual = sha256_of(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    if actual != sha256:
        return (
            f"{path} does not match its manifest (sha256 {actual[:8]}…, expected {sha256[:8]}…): "
            "it was altered or cut short; fetch the bundle again."
        )
    return None


def write_manifest(path: Path, manifest: dict[str, Any]) -> Path:
    """Write `manifest` as the manifest of the bundle in the folder `path`, with current hashes.

    Fills `sha256` of graphs and variants, and the values of `files`, from the files, which must
    exist, and replaces `bundle.yaml` in one step. Returns the manifest's path. The dict passed in
    is kept.
    """
    file = path / MANIFEST
    manifest = copy.deepcopy(manifest)
    manifest["schema"] = SCHEMA
    try:
        for graph in manifest["graphs"].values():
            for one in (graph, *graph.get("variants", {}).values()):
                one["sha256"] = sha256_of(inside(file, one["file"]))
        for name in manifest.get("files", {}):
            manifest["files"][name] = sha256_of(inside(file, name))
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename} is named by the manifest but missing.") from error
    text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=100)
    handle, temporary = tempfile.mkstemp(prefix=".bundle", suffix=".yaml", dir=path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    return file
