"""The rows of an episode: when each of its frames is, and what is written beside them.

Invariant: an episode has as many rows as it says, at times that rise strictly, or is an
EpisodeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .dataset import Episode, EpisodeError, pyarrow_parquet, reason_of

SNAP = 5e-4  # s: a time that is float32 is meant to be a multiple of the period
INDEX = "episode_index"
BESIDE = ("timestamp", INDEX, "task_index", "subtask_index", "language_persistent")


class Rows:
    """The rows of one episode. Raises EpisodeError.

    `times`: float64 `[N]`, seconds from its start; `end`: when its last frame ends.
    """

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        fps, count = episode.dataset.fps, episode.length
        self._table = _of(episode, _beside(episode))
        if self._table.num_rows != count:
            raise EpisodeError(
                episode, f"{episode.data} has {self._table.num_rows} of its {count} rows."
            )
        grid = np.arange(count) / fps
        said = self.column("timestamp")
        try:
            times = grid if said is None else np.asarray(said, np.float64)
        except (TypeError, ValueError) as error:
            why = f"the times of its rows in {episode.data} are no numbers."
            raise EpisodeError(episode, why) from error
        self.times = np.where(np.abs(times - grid) < SNAP, grid, times)
        if not np.all(np.diff(self.times, prepend=-1.0) > 0):  # NaN is not
            raise EpisodeError(episode, f"the times of its rows in {episode.data} do not rise.")
        self.end = float(self.times[-1]) + 1 / fps

    def column(self, name: str) -> list[Any] | None:
        """The values of a column, one a row; None where there is none."""
        return self._table[name].to_pylist() if name in self._table.column_names else None

    def longest(self, name: str) -> list[Any]:
        """The longest list in a column of lists: what is written at every row, or once."""
        import pyarrow.compute
        from pyarrow import types

        if name not in self._table.column_names:
            return []
        kind = self._table[name].type
        if not (types.is_list(kind) or types.is_large_list(kind)):
            return []
        lengths = pyarrow.compute.list_value_length(self._table[name])
        lengths = np.asarray(lengths.fill_null(0))
        return list(self._table[name][int(lengths.argmax())].as_py() or ())


def images(episode: Episode) -> list[Any]:
    """What the episode's rows hold of its camera: dicts of `bytes` and `path`, or bytes."""
    table = _read(episode, (episode.camera, INDEX), alone=True)
    if episode.camera not in table.column_names or table.num_rows != episode.length:
        raise EpisodeError(episode, f"{episode.data} lacks pictures of {episode.camera}.")
    return list(table[episode.camera])


def _beside(episode: Episode) -> Any:
    """The table of a data file without what is large; of the file that was read last it is kept."""
    opened = episode.dataset.opened
    if opened.get("rows", ("",))[0] != episode.data:
        opened["rows"] = (episode.data, _read(episode, BESIDE))
    return opened["rows"][1]


def _read(episode: Episode, columns: Sequence[str], alone: bool = False) -> Any:
    """Those of the columns that there are; `alone`: of the rows of the episode."""
    file = episode.root / episode.data
    parquet = pyarrow_parquet(episode.root)
    if not file.is_file():
        raise EpisodeError(episode, f"there is no {episode.data}.")
    try:
        have = parquet.read_schema(file).names
        wanted = [name for name in columns if name in have]
        its = [(INDEX, "=", episode.index)] if alone and INDEX in have else None
        return parquet.read_table(file, columns=wanted, filters=its)
    except Exception as error:  # of bytes that may be anything
        why = f"{episode.data} cannot be read ({reason_of(error)})."
        raise EpisodeError(episode, why) from error


def _of(episode: Episode, table: Any) -> Any:
    import pyarrow.compute

    if INDEX not in table.column_names:
        return table
    try:
        return table.filter(pyarrow.compute.equal(table[INDEX], episode.index))
    except pyarrow.ArrowException as error:  # of a column of another type
        why = f"{episode.data} cannot be read ({reason_of(error)})."
        raise EpisodeError(episode, why) from error
