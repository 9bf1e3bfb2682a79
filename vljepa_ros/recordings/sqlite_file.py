"""A bag's .db3 file: an SQLite database, with what its logs hold.

Invariant: neither the file nor its folder is written to.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .storage import BagError, Message, Say, Topic, Wanted, in_line, reason_of, unreadable

DAMAGE = (sqlite3.Error, MemoryError)  # a size that is damaged may be any


@dataclass
class SqliteFile:
    """A .db3 file; `named` is what the user knows it as."""

    path: Path
    named: Path
    say: Say

    def messages(self, wanted: Wanted, data: bool) -> Iterator[Message]:
        """See `bag_messages`."""
        with self._opened() as database:
            try:
                topics = {key: topic for key, topic in self._topics(database) if wanted(topic)}
            except DAMAGE as error:
                raise self._refused(error) from error
            if not topics:
                return
            last, column = -(2**63), "data" if data else "null"
            try:
                for row, key, log_ns, content in database.execute(
                    f"select rowid, topic_id, timestamp, {column} from messages "
                    f"where topic_id in ({', '.join(map(str, topics))}) order by rowid"
                ):
                    if row <= last:
                        raise sqlite3.DatabaseError("rows out of order")
                    last = row
                    yield Message(
                        topics[key], max(0, log_ns) if isinstance(log_ns, int) else 0,
                        content if isinstance(content, bytes) else b"",
                    )  # fmt: skip
            except DAMAGE as error:
                if last == -(2**63):
                    raise self._refused(error) from error
                self.say(
                    f"{self.named} is damaged ({reason_of(error)}): what follows is left out; "
                    f"`sqlite3 {self.named.name} .recover | sqlite3 new.db3` may save more."
                )

    def _topics(self, database: sqlite3.Connection) -> Iterator[tuple[int, Topic]]:
        definitions: dict[str, str] = {}
        with suppress(*DAMAGE):  # there is no such table before Iron
            definitions = dict(
                database.execute(
                    "select topic_type, encoded_message_definition from message_definitions "
                    "where encoding = 'ros2msg'"
                )
            )
        for key, name, kind in database.execute("select id, name, type from topics"):
            if isinstance(key, int):
                yield key, Topic(in_line(name), in_line(kind), str(definitions.get(kind, "")))

    def _refused(self, error: Exception) -> BagError:
        if not self.path.stat().st_size:
            return unreadable(self.named, "it is empty: nothing reached the disk")
        return unreadable(self.named, error)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database with what its logs hold. Neither it nor its folder is written to."""
        source = self.path.resolve()
        logs = [source.with_name(source.name + end) for end in ("-wal", "-journal")]
        logs = [log for log in logs if log.is_file() and log.stat().st_size]
        with tempfile.TemporaryDirectory() if logs else nullcontext("") as folder:
            if logs:  # SQLite takes a log in by writing: into a copy
                where = str(_copied(source, logs, Path(folder)))
            else:
                where = f"{source.as_uri()}?mode=ro&immutable=1"
            try:
                database = sqlite3.connect(where, uri=not logs)
            except DAMAGE as error:
                raise self._refused(error) from error
            with closing(database):
                database.execute("pragma writable_schema=on")  # reads one that was cut short, too
                database.text_factory = lambda text: text.decode(errors="replace")
                yield database


def _copied(source: Path, logs: list[Path], folder: Path) -> Path:
    """A copy of a database and its logs, of one moment. Raises BagError, OSError."""

    def state() -> tuple[Any, ...]:
        """Changes where the recorder has moved messages from its log to the database."""
        found = source.stat()
        heads = []
        for log in logs:
            with log.open("rb") as file:
                heads.append(file.read(32))
        return found.st_mtime_ns, found.st_size, heads

    with suppress(FileNotFoundError):  # a log goes when its recorder ends
        for _ in range(3):
            before = state()
            for file in (source, *logs):
                shutil.copyfile(file, folder / file.name)
            if state() == before:
                return folder / source.name
    raise BagError(f"{source} is being written to at this moment; end its recorder first.")
