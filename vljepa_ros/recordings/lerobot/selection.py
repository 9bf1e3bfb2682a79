"""Which episodes of which data set are meant, on this machine or on the Hub.

Invariant: of a data set of the Hub only what is chosen is fetched: its description, then the data
files and the one camera's videos of the chosen episodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..left_out import ranges
from .dataset import Dataset, DatasetError, Episode, is_dataset
from .hub import fetch, hub_name

ABOUT = (
    "meta/info.json", "meta/tasks.*", "meta/subtasks.*", "meta/episodes.jsonl", "meta/episodes/*",
)  # fmt: skip


def is_meant(source: Path, camera: bool) -> bool:
    """Whether `source` is the folder of a data set, or the id of one of the Hub.

    An id is meant only where a `camera` is named: a mistyped path looks the same, and nobody is to
    be asked for it.
    """
    return is_dataset(source) or (camera and may_be_of_hub(source))


def may_be_of_hub(source: Path) -> bool:
    """Whether `source` has the form of an id of the Hub, and is nothing that lies here."""
    return not source.exists() and bool(hub_name(source))


def open_dataset(source: Path) -> Dataset:
    """The data set that is meant. Raises DatasetError."""
    if is_dataset(source):
        return Dataset(source)
    return Dataset(fetch(str(source), ABOUT), hub_name(source), str(source))


def choose(dataset: Dataset, camera: str = "", chosen: str = "") -> list[Episode]:
    """Episodes as `camera` saw them. Raises DatasetError.

    `camera`: as of `Dataset.camera`; `chosen`: their numbers, "3", "0:50" (up to 49) or "0:5,9";
    empty: all. Call `fetch_episodes` before they are read.
    """
    key = dataset.camera(camera)
    found = list(dataset.episodes(key))
    if chosen:
        wanted = _numbers(chosen, dataset)
        found = [one for one in found if one.index in wanted]
    if not found:
        raise DatasetError(
            f"{dataset.name} has no pictures of {key} in the episodes it is asked for."
        )
    return found


def spread(episodes: Sequence[Episode], seconds: float) -> list[Episode]:
    """Some of the episodes, spread over all, that last about so long together."""
    total = sum(one.seconds for one in episodes)
    count = min(len(episodes), max(1, round(len(episodes) * seconds / total)))
    return [episodes[(2 * k + 1) * len(episodes) // (2 * count)] for k in range(count)]


def unseen(dataset: Dataset, episodes: Iterable[Episode], chosen: str = "") -> list[int]:
    """The numbers of those that were chosen and of which the camera has no pictures."""
    seen = {one.index for one in episodes}
    wanted = _numbers(chosen, dataset) if chosen else set(dataset.indexes)
    return sorted(wanted - seen)


def fetch_episodes(episodes: Iterable[Episode]) -> None:
    """Fetch the files of episodes of one data set, if it is one of the Hub. DatasetError."""
    for dataset in {one.dataset for one in episodes if one.dataset.hub}:
        files = {name for one in episodes for name in (one.data, one.video) if name}
        fetch(dataset.hub, sorted(files), dataset.root.name)  # of the revision that was described


def _numbers(chosen: str, dataset: Dataset) -> set[int]:
    there, found = dataset.indexes, set[int]()
    for part in chosen.split(","):
        match = re.fullmatch(r"\s*(\d*)(:?)(\d*)\s*", part)
        if match is None or not (match[1] or match[2]):
            raise DatasetError(
                f"--episodes '{chosen}' names no episodes; give e.g. 3, 0:50 or 0:5,9."
            )
        first = int(match[1] or 0)
        end = (int(match[3]) if match[3] else there[-1] + 1) if match[2] else first + 1
        found.update(index for index in there if first <= index < end)
    if not found:
        raise DatasetError(f"{dataset.name} has no episodes {chosen}; it has {ranges(there)}.")
    return found
