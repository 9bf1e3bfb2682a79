"""Where bundles are: local folders, bundles shipped with the package, the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vljepa_ros.errors import BundleError

from .manifest import MANIFEST

DEFAULT = "everyday"  # what a real camera meets; `tabletop` knows a small world
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


def shared_folders(name: str) -> list[Path]:
    """Where a folder that the package ships may lie: in the installed share, the source tree."""
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [Path(p) / "share/vljepa_ros" / name for p in [*prefixes, sys.prefix]]
    return [*folders, Path(__file__).resolve().parents[2] / name]


def shipped_bundles() -> list[Path]:
    """Folders that hold bundles by name: $VLJEPA_BUNDLES, the installed share, the source tree."""
    folders = [Path(p) for p in os.environ.get("VLJEPA_BUNDLES", "").split(os.pathsep) if p]
    return list(dict.fromkeys([*folders, *shared_folders("engines")]))


def shipped_phrases(name: str) -> Path:
    """The bank of phrases of that name that the package ships: `events`. Raises BundleError."""
    for folder in shared_folders("config"):
        if (folder / "phrases" / f"{name}.txt").is_file():
            return folder / "phrases" / f"{name}.txt"
    raise BundleError(
        f"There is no file of phrases '{name}', and no bank of that name is shipped; give the path "
        "of a text file with one phrase a line."
    )


def find_bundle(source: str) -> Path:
    """The folder of the bundle that `source` means.

    A local folder; the name of a bundle shipped with the package or in $VLJEPA_BUNDLES; or a
    Hugging Face Hub id `owner/name[@revision]`, fetched into the Hub's cache. Raises BundleError.
    """
    local = Path(source).expanduser()
    if (local / MANIFEST).is_file():
        return local
    if re.fullmatch(r"[\w.-]*\w[\w.-]*", source):
        for folder in shipped_bundles():
            if (folder / source / MANIFEST).is_file():
                return folder / source
    if local.is_dir():
        raise BundleError(f"{local} is not a model bundle: it holds no {MANIFEST}.")
    hub_id = HUB_ID.fullmatch(source)
    if hub_id:
        return _fetch(hub_id[1], hub_id[2])
    raise BundleError(
        f"No bundle '{source}': it is no folder, no Hub id (owner/name), and no bundle of that "
        f"name lies in {', '.join(str(f) for f in shipped_bundles())}."
    )


def find_folder(source: str, patterns: Sequence[str]) -> Path:
    """A local folder, or the files of a Hub id `owner/name[@revision]` that match `patterns`.

    Raises BundleError.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    hub_id = HUB_ID.fullmatch(source)
    if hub_id is None:
        raise BundleError(f"'{source}' is neither a folder nor a Hub id (owner/name).")
    return _fetch(hub_id[1], hub_id[2], list(patterns))


def _fetch(repo_id: str, revision: str | None, patterns: list[str] | None = None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise BundleError(
            f"'{repo_id}' is no local folder, and fetching it from the Hugging Face Hub needs "
            "huggingface_hub: pip install huggingface_hub."
        ) from None
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the Hub client raises a dozen unrelated types when offline
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BundleError(
            f"'{repo_id}' is no local folder, and it could not be fetched from the Hugging Face "
            f"Hub ({type(error).__name__}: {reason}); check the name and the network, or give "
            "a local folder."
        ) from error
