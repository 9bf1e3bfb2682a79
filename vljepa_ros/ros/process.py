"""One node as one process: how it starts, and how it ends.

Invariant: from the first line of `Signals` on, SIGINT and SIGTERM end the process with exit code 0
within `GRACE` seconds, without a traceback, whatever it is doing: importing, loading an engine,
or running one.

Signals are not handled but waited for, by a thread: a handler would run in the middle of whatever
the main thread does, and not at all while that is in a long call into C.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vljepa_ros.errors import VLJepaError

from .shared_memory import remove_dead_ports

GRACE = 2.5  # seconds for an orderly end, of the 3 that we promise
SWITCH = 0.0002  # seconds; at Python's 5 ms a worker that was woken waits for the executor's thread
FASTDDS_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
FASTDDS_TRANSPORTS = "DEFAULT?sockets_size=4MB&non_blocking=true"
FASTDDS_PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # new, old
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def fastdds_settings() -> dict[str, str]:
    """The environment that Fast DDS shall find, without what the user chose.

    Its default shared-memory segment is smaller than a VGA image, which it then drops. The first
    value enlarges the segment, 8 MB for each process, and keeps the default transports otherwise:
    LARGE_DATA, which is a little faster, neither discovers nor is discovered by a process with the
    defaults, as drivers and `ros2 topic echo` in an ordinary shell are. The other is a file that
    says why it is there.
    """
    settings = {}
    if FASTDDS_VARIABLE not in os.environ:
        settings[FASTDDS_VARIABLE] = FASTDDS_TRANSPORTS
    if not any(name in os.environ for name in FASTDDS_PROFILES):
        settings[FASTDDS_PROFILES[0]] = str(Path(__file__).with_name("fastdds.xml"))
    return settings


def set_fastdds() -> None:
    """Let this process and its children have `fastdds_settings`; before rclpy loads."""
    os.environ.update(fastdds_settings())


def needs_ros(command: str, error: ImportError) -> VLJepaError:
    """Why `command` cannot run where ROS 2 or the interfaces do not import, and what to do here."""
    if (Path(__file__).resolve().parents[2] / "scripts" / "env.sh").is_file():
        remedy = "run scripts/setup once, then `. scripts/env.sh`"
    else:
        remedy = "build the package in a ROS 2 workspace, and source its install/setup.bash"
    return VLJepaError(
        f"vljepa {command} needs ROS 2 and the built package ({error}): {remedy}, then try again."
    )


def forward_logs() -> None:
    """Let what the ROS-free layers log appear as ROS does, once for each process."""
    from rclpy.logging import get_logger

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger, text = get_logger("vljepa_ros"), self.format(record)
            # rclpy tells call sites apart, and wants one severity for each.
            if record.levelno >= logging.ERROR:
                logger.error(text)
            elif record.levelno >= logging.WARNING:
                logger.warning(text)
            else:
                logger.info(text)

    ours = logging.getLogger("vljepa_ros")
    if not any(type(handler).__name__ == "Forward" for handler in ours.handlers):
        ours.addHandler(Forward())
        ours.propagate = False


def init_ros(arguments: Sequence[str] | None) -> None:
    """Start rclpy, with signals left to `Signals`. `arguments`: the command line; None: sys.argv.

    What would hang it, and all its peers, is removed first, and told. VLJepaError where ROS refuses
    the arguments: a parameter file, a namespace, a log level.
    """
    import rclpy
    from rclpy.logging import get_logger
    from rclpy.signals import SignalHandlerOptions

    removed = remove_dead_ports()
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rclpy's has no public name
        reason = re.sub(r", at \S+:\d+", "", str(error))
        raise VLJepaError(f"ROS 2 does not start: {' '.join(reason.split())}.") from None
    for path in removed:
        get_logger("vljepa_ros").warn(
            f"Removed {path}, which a process that was killed as it started had left: every ROS "
            "process that met it would have hung."
        )


class Signals:
    """SIGINT and SIGTERM as a request to stop. Made by the main thread, before others start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def on_stop(self, stop: Callable[[], None]) -> None:
        """`stop()` is called once, by another thread; it must make the main thread return.

        Until it is set, a signal ends the process at once: there is nothing to put in order yet.
        """
        with self._lock:
            self._stop = stop

    def _wait(self) -> None:
        signal.sigwait(_SIGNALS)
        with self._lock:
            stop = self._stop
        if stop is None:
            _leave()
        late = threading.Timer(GRACE, _leave)
        late.daemon = True
        late.start()
        stop()  # type: ignore[misc]
        signal.sigwait(_SIGNALS)  # asked twice
        _leave()


def _leave() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # even where nobody reads the output any more
        os._exit(0)


def run(module: str, name: str, args: Sequence[str] | None = None) -> int:
    """Run the node class `name` of `module` until it has finished or a signal comes.

    `args`: the command line with ROS arguments; None: sys.argv. Returns the exit code: 1 where the
    node could not be made or says that it failed, which it has logged. SystemExit where the node is
    not to be run: `check_arguments`.
    """
    signals = Signals()
    node_class = getattr(importlib.import_module(module), name)
    import rclpy

    from .arguments import check_arguments

    check_arguments(node_class.__doc__, node_class.specs, args)

    try:
        init_ros(args)
    except VLJepaError as error:
        print(error, file=sys.stderr)
        return 1
    spinner = Spinner(node_class(), thread=False)
    signals.on_stop(spinner.finish)
    spinner.spin()
    spinner.end()
    rclpy.try_shutdown()
    return int(spinner.node.exit_code)


class Spinner:
    """A node and its executor, in the caller's thread or, where several share a process, its own.

    The node has `finished`, an event; `on_finished`, called when it ends by itself; `end()`; and
    `exit_code`. It may have `farewell`, seconds in which it still sends something after `end()`.
    """

    def __init__(self, node: Any, thread: bool = True) -> None:
        from rclpy.executors import SingleThreadedExecutor

        sys.setswitchinterval(SWITCH)
        forward_logs()
        self.node = node
        self.failure = ""  # of a callback, after which a thread spins no more
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        node.on_finished = self.finish
        self._thread: threading.Thread | None = None
        if thread:
            self._thread = threading.Thread(target=self._run, name=node.get_name(), daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Spin in a thread of its own, whose exceptions nobody would look at."""
        try:
            self.spin()
        except Exception as error:
            self.node.get_logger().error(traceback.format_exc())
            self.failure = f"{type(error).__name__}: {error}"

    def spin(self) -> None:
        """Spin until the node has finished."""
        while not self.node.finished.is_set():
            self._executor.spin_once()

    def finish(self) -> None:
        """Let `spin` return; from any thread."""
        self.node.finished.set()
        self._executor.create_task(lambda: None)  # `wake` alone would not end `spin_once`

    def end(self) -> None:
        """Shut the node down and destroy it."""
        self.finish()
        if self._thread is not None:
            self._thread.join()
        self.node.end()
        until = time.monotonic() + getattr(self.node, "farewell", 0.0)
        while (left := until - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)
        self._executor.remove_node(self.node)
        self.node.destroy_node()
        self._executor.shutdown(timeout_sec=0)
