"""The engines of a node: opened, built beside the stream, replaced, and reported.

Invariant: the model that a node uses is replaced in its worker's thread, between two pieces of
work, and a build that fails leaves the one that serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.backends import must_build
from vljepa_ros.inference.runtime import Runtime

from .diagnostics import ERROR, WARN, Status, engine_statuses, publish
from .lifecycle import ModelNode

SAID = 0.1  # of a build, between two lines of the log


class _GivenUpError(Exception):
    """The node has no more use for what is being built."""


class Engines:
    """Opens the model of a node by its parameters `bundle`, `backend`, `precision`, `threads`.

    `parts`: the graphs, of which those are opened that the bundle has.
    Where an engine is still to be built and the parameter `serve_while_building` is true, another
    backend serves at once, the build runs beside it, and `replaced` is called in the worker's
    thread with the model that takes over; the other one is closed after that.
    """

    def __init__(
        self, node: ModelNode, parts: Sequence[str], replaced: Callable[[Runtime], None]
    ) -> None:
        self.model: Runtime | None = None
        self._node = node
        self._parts = parts
        self._open: Sequence[str] = ()
        self._replaced = replaced
        self._building_for: Runtime | None = None  # what serves while a build runs beside it
        self._progress: tuple[str, float] | None = None  # what is being built, and how far
        self._said = ("", 0.0)
        self._problem = ""  # why the last build beside the stream failed

    def open(self) -> Runtime:
        """Open the engines, in the worker's thread. VLJepaError where they cannot be."""
        values = self._node.values()
        bundle = load_bundle(values["bundle"])
        wanted: dict[str, Any] = {key: values[key] for key in ("backend", "threads", "precision")}
        self._problem = ""
        self._open = [part for part in self._parts if part in bundle.graphs]
        unbuilt = any(
            must_build(bundle.graphs[part], wanted["backend"], wanted["precision"])
            for part in self._open
        )
        if not (unbuilt and values["serve_while_building"]):
            self._building_for = None
            with self._telling():
                self.model = self._build(bundle, wanted)
            return self.model
        self.model = Runtime(bundle, "auto", wanted["threads"], self._open, build=False)
        self._building_for = self.model
        self._node.get_logger().info(
            f"Engines are being built, which takes minutes; {self.model.info[0].backend} serves "
            "until then."
        )
        threading.Thread(
            target=self._build_beside, args=(bundle, wanted), name="build", daemon=True
        ).start()
        return self.model

    def close(self) -> None:
        """Close the engines, in the worker's thread, and give up what is being built."""
        model, self.model = self.model, None
        if model is not None:
            model.close()

    def statuses(self) -> list[Status]:
        """A line for each engine, for what is being built, and for what failed."""
        if self.model is None:
            return []
        lines = engine_statuses(self.model)
        if self._progress is not None:
            lines.append(self._building())
        problems = [*self.model.faults, *([self._problem] if self._problem else [])]
        if problems:
            lines.append(Status("engines", ERROR, problems[-1], {"faults": len(problems)}))
        return lines

    def _build(self, bundle: Bundle, wanted: dict[str, Any]) -> Runtime:
        try:
            return Runtime(bundle, parts=self._open, report=self._report, **wanted)
        finally:
            self._progress = None

    def _build_beside(self, bundle: Bundle, wanted: dict[str, Any]) -> None:
        """Build while another backend serves, then have the worker take over the engines."""
        worker, serving = self._node.worker, self.model
        try:
            model = self._build(bundle, wanted)
        except _GivenUpError:
            return
        except VLJepaError as error:
            self._problem = f"{error} The node goes on with the backend that serves."
            self._node.get_logger().error(self._problem)
            return
        try:
            if worker is None or not worker.call(lambda: self._replace(serving, model)):
                model.close()
        except RuntimeError:  # the worker has ended
            model.close()

    def _replace(self, serving: Runtime | None, model: Runtime) -> bool:
        """Take over `model`, unless the node has gone on from the one that was serving."""
        if serving is None or self.model is not serving:
            return False
        self.model = model
        self._replaced(model)
        serving.close()
        engines = ", ".join(f"{e.name} on {e.backend} ({e.precision})" for e in model.info)
        self._node.get_logger().info(f"The engines are built; now {engines}.")
        return True

    def _report(self, part: str, phase: str, done: float) -> None:
        """Keep how far a build is, for /diagnostics, and tell the log now and then."""
        if self._building_for is not self.model:
            raise _GivenUpError
        what = f"{part}: {phase}"
        self._progress = (what, done)
        said, last = self._said
        if what != said or done - last >= SAID or done >= 1 > last:
            self._said = (what, done)
            self._node.get_logger().info(f"Building {what}, {done:.0%}.")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Publish the build's status every second: the executor waits, and cannot do it."""
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(1.0):
                if self._progress is not None:
                    publish(self._node.diagnostics, self._node, [self._building()])

        thread = threading.Thread(target=tell, name="build status", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _building(self) -> Status:
        what, done = self._progress or ("", 0.0)
        return Status("build", WARN, f"building {what}", {"progress (%)": 100 * done})
