"""Data sets of the Hugging Face Hub, fetched into its cache as far as they are read.

Invariant: nothing is fetched but of the id that the user names, and no file twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .dataset import DatasetError, reason_of

HUB_ID = re.compile(r"(\w[\w.-]*/(\w[\w.-]*))(?:@(\w[\w./-]*))?")
MANY = 200  # files; of more their folders are fetched
RECORDED = re.compile(r"\.(db3|mcap|zstd|mp4|mkv|avi|mov|webm|jsonl?)$")


def hub_name(source: Path) -> str:
    """The data set's own name where `source` is an id of the Hub, `owner/name[@revision]`.

    What may be a mistyped file, or a place in a folder that is there, is none: it is empty.
    """
    found = HUB_ID.fullmatch(str(source))
    if found is None or Path(source.parts[0]).exists() or RECORDED.search(found[2]):
        return ""
    return found[2]


def fetch(hub: str, files: Sequence[str], revision: str = "") -> Path:
    """The folder with these files, patterns too, of the data set `hub`. Raises DatasetError.

    `revision`: in the place of the one that `hub` names.
    """
    if len(files) > MANY:
        files = sorted({f"{Path(name).parent}/*" for name in files})
    found = HUB_ID.fullmatch(hub)
    assert found is not None
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DatasetError(
            f"There is no {hub} here, and fetching it from the Hugging Face Hub needs "
            "huggingface_hub: pip install huggingface_hub."
        ) from error
    try:
        folder = snapshot_download(
            found[1], repo_type="dataset", revision=revision or found[3],
            allow_patterns=list(files),
        )  # fmt: skip
    except Exception as error:  # the Hub's client raises a dozen unrelated types when offline
        raise DatasetError(
            f"There is no {hub} here, and it could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {reason_of(error)}); check the name and the network, or "
            "give a local folder."
        ) from error
    return Path(folder)
