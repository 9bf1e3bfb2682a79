"""Small pictures of one camera, ever fewer the older they are.

Invariant: of the pictures `m` steps ago about one in `m / DENSE` is kept, so the middle of a
segment of any length has one near it, and hours take no more memory than minutes, but for a
handful a doubling.
"""

from __future__ import annotations

from collections import deque

DENSE = 16  # pictures at each density
LEVELS = 20  # densities, each half of the one before: 16 million steps
WAITING = 16  # pictures that wait for their step, and steps that wait for their picture


class Shelf:
    """The pictures of one stretch of time that never jumped back."""

    def __init__(self) -> None:
        self.newest_ns = -1
        self._count = 0
        self._levels: list[deque[tuple[int, bytes]]] = [
            deque(maxlen=DENSE) for _ in range(LEVELS)
        ]  # level i: the last of every 2 ** i-th picture

    def put(self, stamp_ns: int, picture: bytes) -> None:
        """Keep a picture that is newer than all before."""
        for level, pictures in enumerate(self._levels):
            if self._count % 2**level:
                break
            pictures.append((stamp_ns, picture))
        self._count += 1
        self.newest_ns = stamp_ns

    def nearest(self, start_ns: int, end_ns: int) -> bytes:
        """The picture nearest to the middle of a stretch, of those in it; empty: there is none."""
        twice_middle = start_ns + end_ns
        inside = (
            (abs(2 * stamp - twice_middle), stamp, picture)
            for pictures in self._levels
            for stamp, picture in pictures
            if start_ns <= stamp <= end_ns
        )
        return min(inside, default=(0, 0, b""))[2]


class Thumbnails:
    """The pictures of one camera, also after its time jumped back: of then, and of before.

    Each step has one, of its own stamp; those of another node's steps are left out.
    """

    def __init__(self) -> None:
        self._now, self._before = Shelf(), Shelf()
        self._steps: deque[int] = deque(maxlen=WAITING)  # stamps, without a picture
        self._pictures: deque[tuple[int, bytes]] = deque(maxlen=WAITING)  # without a step

    def put(self, stamp_ns: int, picture: bytes) -> None:
        """A picture; kept when there is a step of its stamp."""
        if stamp_ns in self._steps:
            self._steps.remove(stamp_ns)
            self._keep(stamp_ns, picture)
        else:
            self._pictures.append((stamp_ns, picture))

    def step(self, stamp_ns: int) -> None:
        """A step; the answers to further queries have the same stamp."""
        for waiting in self._pictures:
            if waiting[0] == stamp_ns:
                self._pictures.remove(waiting)
                self._keep(*waiting)
                return
        if stamp_ns != self._now.newest_ns and stamp_ns not in self._steps:
            self._steps.append(stamp_ns)

    def _keep(self, stamp_ns: int, picture: bytes) -> None:
        if stamp_ns == self._now.newest_ns:
            return
        if stamp_ns < self._now.newest_ns:
            self._now, self._before = Shelf(), self._now
        self._now.put(stamp_ns, picture)

    def nearest(self, start_ns: int, end_ns: int, jumped: bool) -> bytes:
        """The picture nearest to the middle of a segment; `jumped`: time jumped back after it."""
        first, second = (self._before, self._now) if jumped else (self._now, self._before)
        return first.nearest(start_ns, end_ns) or second.nearest(start_ns, end_ns)
