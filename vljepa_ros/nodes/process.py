"""One node as one process: how it starts, and how it ends.

Invariant: from the first line of `Signals` on, SIGINT and SIGTERM end the process with exit code 0
within `GRACE` seconds, without a traceback, whatever it is doing: importing, loading an engine,
or running one.

Signals are not handled but waited for, by a thread: a handler would run in the middle of whatever
the main thread does, and not at all while that is in a long call into C.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

GRACE = 2.5  # seconds for an orderly end, of the 3 that we promise
FASTDDS_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
FASTDDS_TRANSPORTS = "LARGE_DATA?max_msg_size=4MB&sockets_size=4MB&non_blocking=true"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def set_transport() -> None:
    """Let Fast DDS carry images between processes; before rclpy loads, unless the user chose.

    Its default shared-memory segment is smaller than a VGA image, which it then drops.
    """
    os.environ.setdefault(FASTDDS_VARIABLE, FASTDDS_TRANSPORTS)


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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(module: str, name: str, args: Sequence[str] | None = None) -> int:
    """Run the node class `name` of `module` until it has finished or a signal comes.

    `args`: the command line with ROS arguments; None: sys.argv. Returns the exit code: 1 where the
    node could not be made or says that it failed, which it has logged.
    """
    signals = Signals()
    node_class = getattr(importlib.import_module(module), name)
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = node_class()
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def stop() -> None:
        node.finished.set()
        executor.create_task(lambda: None)  # `wake` alone would not end `spin_once`

    node.on_finished = stop
    signals.on_stop(stop)
    while not node.finished.is_set():
        executor.spin_once()
    node.end()
    executor.remove_node(node)
    node.destroy_node()
    executor.shutdown(timeout_sec=0)
    rclpy.try_shutdown()
    return int(node.exit_code)
