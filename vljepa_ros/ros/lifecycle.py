"""What the lifecycle nodes have in common: parameters, transitions, the worker, diagnostics.

Invariant: a transition that fails says why in one sentence, leaves nothing behind, and the node
is unconfigured again, ready for another try. Subclasses write only what they set up and release.

Where the node starts by itself (parameter `autostart`), it makes its own first transitions. A
launch file could ask for them from outside, but after a respawn it races with discovery: its
request may reach the service of the process that has just died, and its answer never comes.
"""

from __future__ import annotations

import shutil
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.service import Service
from rclpy.task import Future

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.backends import BACKENDS
from vljepa_ros.inference.engine import PRECISIONS

from . import diagnostics
from .pace import Pace
from .parameters import ParameterError, Spec, declare, unknown, values
from .worker import Worker

AUTOSTART = Spec("autostart", True, "Configure and activate the node when it starts.")
BUNDLE = Spec("bundle", DEFAULT, "Model bundle: a folder, a shipped name, or a Hub id.")
BACKEND = Spec("backend", "auto", "What runs the engines.", choices=("auto", *BACKENDS))
PRECISION = Spec(
    "precision", "auto", "Precision of the engines; auto: the fastest that the bundle vouches for.",
    choices=PRECISIONS,
)  # fmt: skip
THREADS = Spec("threads", 0, "Threads per engine on the CPU; 0: the backend's choice.",
               low=0, high=256)  # fmt: skip
SERVE_WHILE_BUILDING = Spec(
    "serve_while_building", True,
    "Run on another backend while TensorRT builds its engines; else be configured only then.",
)  # fmt: skip
ENGINES = (BUNDLE, BACKEND, PRECISION, THREADS, SERVE_WHILE_BUILDING)
# rclpy takes one request of a service at a time: by default, all but 10 of a burst would be lost.
BURST = QoSProfile(depth=1000)


class ModelNode(LifecycleNode):
    """A lifecycle node with engines. Subclasses write five hooks and `specs`.

    `load` and `unload` run in the worker and open and close the engines; `setup` and `teardown`
    make and take back what lasts while configured; `start` and `stop` bracket the active state;
    `work` is the worker's piece of work. `stop`, `teardown` and `unload` also follow on hooks that
    failed half the way. Hooks raise VLJepaError with a sentence for what a user can mend.
    """

    specs: Sequence[Spec] = ()
    owned = False  # by a process that ends where it cannot start, and says why
    spare: Sequence[Spec] = ()  # that a parameter file may hold in vain, at their defaults

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.finished = threading.Event()
        self.exit_code = 0
        self.farewell = 0.0  # seconds to spin after `end`, for what is still to be sent
        self.failure = ""  # why the last transition failed
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.specs = self.all_specs()
        self._problems = declare(self, self.specs)
        for sentence in unknown(self, self.spare):
            self.get_logger().warning(sentence)
        self.add_on_set_parameters_callback(self._on_set)
        # What waits for the worker must not hold up the rest of its group.
        self.waiting_services = ReentrantCallbackGroup()
        self.worker: Worker | None = None
        self.diagnostics = diagnostics.publisher(self)
        self._timer = self.create_timer(1.0, self._diagnose, clock=self.steady)
        self._starter = self.create_timer(0.0, self._autostart, clock=self.steady)

    # -------------------------------------------------------------- hooks

    def all_specs(self) -> Sequence[Spec]:
        """The parameters; those that depend on others may read the overrides."""
        return self.specs

    def load(self) -> None:
        """Open the engines, in the worker's thread."""

    def setup(self) -> None:
        """Make what lasts while configured."""

    def start(self) -> None:
        """Begin to be active."""

    def stop(self) -> None:
        """End being active."""

    def teardown(self) -> None:
        """Take back what `setup` made."""

    def unload(self) -> None:
        """Close the engines, in the worker's thread."""

    def work(self) -> bool:
        """One piece of the worker's work; whether there may be more."""
        return False

    def apply(self, changed: dict[str, Any]) -> None:
        """Take over parameters that changed, or refuse them all with a VLJepaError."""

    def statuses(self) -> list[diagnostics.Status]:
        """What the node says about its parts, once a second."""
        return []

    @property
    def bundle(self) -> Bundle | None:
        """The bundle that is loaded; None: none is."""
        return None

    # -------------------------------------------------------------- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the engines and set up."""
        return self._attempt("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers, then start."""

        def activate() -> None:
            super(ModelNode, self).on_activate(state)
            self.start()
            self.get_logger().info("Active.")

        return self._attempt("activate", activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop, then disable the publishers."""

        def deactivate() -> None:
            self._stop()
            super(ModelNode, self).on_deactivate(state)

        return self._attempt("deactivate", deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        return self._attempt("clean up", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release, from whatever state."""

        def shut_down() -> None:
            self._stop()
            self._release()

        return self._attempt("shut down", shut_down)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a failed transition: release everything, to be unconfigured again."""
        reason = self.failure

        def recover() -> None:
            self._stop()
            self._release()

        result = self._attempt("recover", recover)
        self.failure = reason or self.failure
        if result is TransitionCallbackReturn.SUCCESS:
            return result
        return TransitionCallbackReturn.FAILURE  # finalized: what is left over is not known

    def end(self) -> None:
        """The process ends: shut down, whatever the state."""
        if self._state_machine.current_state[1] in ("unconfigured", "inactive", "active"):
            self.trigger_shutdown()

    # -------------------------------------------------------------- for subclasses

    @property
    def state(self) -> str:
        """The label of the lifecycle state."""
        return self._state_machine.current_state[1]

    def values(self) -> dict[str, Any]:
        """The parameters' current values by name."""
        return values(self, self.specs)

    def serve(self, kind: type, name: str, callback: Callable[..., Any]) -> Service:
        """A service whose callback is a coroutine. To be made once for the node's life.

        Where it went with the engines, rclpy would fail on the answers that are still to be sent.
        """
        pace = Pace(self)

        async def serve(request: Any, response: Any) -> Any:
            pace.enter()
            answer = await callback(request, response)
            await pace.leave()
            return answer

        return self.create_service(
            kind, name, serve, qos_profile=BURST, callback_group=self.waiting_services
        )

    def promise(self) -> Future:
        """A future to be awaited in a callback, and settled by whatever thread."""
        future = Future(executor=self.executor)
        future.add_done_callback(lambda _: None)  # or the executor does not wake for the result
        return future

    async def in_worker(self, job: Callable[[], Any]) -> Any:
        """The result of `job`, run by the worker, while the executor goes on with other work.

        VLJepaError where the engines are not loaded, or the job fails.
        """
        worker = self.worker
        if worker is None:
            raise VLJepaError(f"{self.get_fully_qualified_name()} is {self.state}; configure it.")
        try:
            return await worker.submit(job, self.promise())
        except RuntimeError as error:
            raise VLJepaError(str(error)) from None

    async def response(self, client: Any, request: Any, seconds: float) -> Any:
        """What a service answers; None where it does not within `seconds`."""
        answer = self.promise()

        def settle(response: Any) -> None:
            if not answer.done():
                answer.set_result(response)

        pending = client.call_async(request)
        pending.add_done_callback(lambda done: settle(done.result()))
        timer = self.create_timer(
            seconds, lambda: settle(None), callback_group=self.waiting_services, clock=self.steady
        )
        try:
            return await answer
        finally:
            self.destroy_timer(timer)
            client.remove_pending_request(pending)

    # -------------------------------------------------------------- inside

    def _configure(self) -> None:
        if self._problems:
            raise ParameterError(" ".join(self._problems))
        self.worker = Worker(self.get_name(), self.work)
        self.worker.call(self.load)
        self.setup()

    def _stop(self) -> None:
        """Stop, and wait for the piece of work at hand: it may still publish."""
        self.stop()
        if self.worker is not None:
            self.worker.call(lambda: None)

    def _release(self) -> None:
        worker, self.worker = self.worker, None
        try:  # before what its jobs publish with is taken back
            if worker is not None:
                worker.finish(self.unload)
        finally:
            self.teardown()

    def _attempt(self, what: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition's action; rclpy itself would swallow its exceptions."""
        try:
            action()
        except (VLJepaError, OSError) as error:
            self.failure = str(error)
            if not self.owned:
                self.get_logger().error(f"Cannot {what}: {error}")
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.get_logger().error(f"Cannot {what}: {traceback.format_exc()}")
        else:
            self.failure = ""
            return TransitionCallbackReturn.SUCCESS
        return TransitionCallbackReturn.ERROR

    def _autostart(self) -> None:
        self._starter.cancel()
        wanted = self.get_parameter("autostart").value
        if not wanted or self.state != "unconfigured":  # or somebody else was faster
            return
        if self.trigger_configure() is TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        if self.state != "active" and not self.owned:
            name = self.get_fully_qualified_name()
            again = "start it again."
            if shutil.which("ros2"):
                again = f"ros2 lifecycle set {name} configure, then activate; or {again}"
            self.get_logger().error(f"{name} is {self.state}. When the cause is mended: {again}")

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy does, which looks at types and bounds before it asks `_on_set`.

        So a whole number will do for a number here, too, and what is refused says what to write.
        """
        try:
            fitted = [self._fitted(parameter) for parameter in parameter_list]
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return super().set_parameters_atomically(fitted)

    def _fitted(self, parameter: Parameter) -> Parameter:
        """The parameter in its declared type. ParameterError: it is wrong, or not to be changed."""
        spec = next((spec for spec in self.specs if spec.name == parameter.name), None)
        if spec is None:
            return parameter
        value = spec.checked(parameter.value)
        if not spec.live:
            raise ParameterError(
                f"Parameter '{spec.name}' is read-only while the node runs; start it with "
                f"{spec.name} set."
            )
        return Parameter(spec.name, value=value)

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        by_name = {spec.name: spec for spec in self.specs}
        try:
            changed = {
                p.name: by_name[p.name].checked(p.value) for p in parameters if p.name in by_name
            }
            if changed:  # not where rclpy declares a parameter of its own
                self.apply(changed)
        except VLJepaError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _diagnose(self) -> None:
        model_id = self.bundle.model_id if self.bundle is not None else ""
        own = diagnostics.node_status(self.state, self.failure, model_id)
        diagnostics.publish(self.diagnostics, self, [own, *self.statuses()])
