"""What the client is tested with: an agent's node in this process, stub servers in another."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from graph import AGAIN, DEADLINE, end_with_parent, wait
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.parameter import Parameter

from vljepa_ros.client import Call, SemanticClient, SemanticTimeout

STUB = Path(__file__).resolve().parent / "stub_servers.py"
EXECUTORS = {"single": SingleThreadedExecutor, "multi": MultiThreadedExecutor}


def answered(call: Callable[[], Call]) -> Any:
    """The result of a call; it is made again where none comes.

    On a busy machine a server may see a new client so late that it cannot answer it.
    """
    for _ in range(5):
        made = call()
        with contextlib.suppress(SemanticTimeout):
            return made.wait(AGAIN)
        made.cancel()
    raise AssertionError(f"{made.what} was never answered")


class Stub:
    """The stub servers as a process."""

    def __init__(self, domain_id: int, *arguments: str) -> None:
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, str(STUB), *arguments], stdout=self.log, stderr=subprocess.STDOUT,
            env={**os.environ, "ROS_DOMAIN_ID": str(domain_id)}, cwd=tempfile.gettempdir(),
            preexec_fn=end_with_parent,
        )  # fmt: skip
        self.wait_for("Ready.")

    def count(self, line: str) -> int:
        """How often it has printed the line."""
        return Path(self.log.name).read_text().splitlines().count(line)

    def wait_for(self, line: str, times: int = 1) -> None:
        """Until it has printed the line."""
        wait(lambda: self.count(line) >= times, f"'{line}' of the stub")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


class Agent:
    """A node that a thread spins, as an agent has it."""

    def __init__(self, domain_id: int, executor: str = "single", sim_time: bool = False) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain_id, args=[])
        self.node = rclpy.create_node(
            "agent", context=self.context,
            parameter_overrides=[Parameter("use_sim_time", value=sim_time)],
        )  # fmt: skip
        self.executor = EXECUTORS[executor](context=self.context)
        self.executor.add_node(self.node)
        self.clients: list[SemanticClient] = []
        self.thread = threading.Thread(target=self.executor.spin)
        self.thread.start()

    def client(self, namespace: str = "", timeout: float = DEADLINE) -> SemanticClient:
        self.clients.append(SemanticClient(self.node, namespace, timeout))
        return self.clients[-1]

    def run(self, callback: Callable[[], Any]) -> None:
        """Run a callback, or a coroutine, once, in the executor."""

        def once() -> Any:
            timer.cancel()
            return callback()

        async def once_async() -> Any:
            timer.cancel()
            return await callback()

        is_async = inspect.iscoroutinefunction(callback)
        timer = self.node.create_timer(0.01, once_async if is_async else once)

    def close(self) -> None:
        for client in self.clients:
            client.destroy()
        self.executor.shutdown()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
