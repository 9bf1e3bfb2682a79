"""The callers of `vljepa bench services`, in a process of their own.

Usage: ask|open|classify COUNT, crowd CALLERS SECONDS, watch COUNT, or vlm SECONDS. Prints `ready`
when the node is found, begins when a line comes in, and prints what it measured as a line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

from vljepa_ros.action import Watch
from vljepa_ros.msg import Utterance
from vljepa_ros.srv import Ask, Classify

QUESTION = "what is red?"
CANDIDATES = ["a cube", "a ball", "a cylinder", "nothing"]
LABELS = ["a cube falls", "a ball rolls", "a hand takes a cube", "nothing moves"]
PATIENCE = 60.0  # seconds
WARM_UP = 5  # calls, in which texts are embedded
GAP = 0.05  # mean seconds between two calls, so that they meet the stream's steps at random
# Every client of a service receives all answers, and keeps 10 by default.
DEEP = QoSProfile(depth=1000)


class Caller:
    """A node that calls, and waits."""

    def __init__(self) -> None:
        rclpy.init(args=[])
        self.node = rclpy.create_node("bench_caller", start_parameter_services=False)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Spin until the condition holds."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise SystemExit(f"waited {seconds:g} s for {what}")
            self._executor.spin_once(timeout_sec=0.1)

    def begin(self) -> None:
        """Say that all is there, and wait until the measurement begins."""
        print("ready", flush=True)
        sys.stdin.readline()

    def one_by_one(self, kind: Any, name: str, request: Any, count: int) -> dict[str, Any]:
        """Seconds to each answer, one call after the other."""
        client = self.node.create_client(kind, name, qos_profile=DEEP)
        self.wait(client.service_is_ready, name)
        self.begin()
        durations = []
        for k in range(WARM_UP + count):
            time.sleep(random.expovariate(1 / GAP))
            asked = time.monotonic()
            future = client.call_async(request)
            self.wait(future.done, "an answer")
            if not future.result().success:
                raise SystemExit(future.result().message)
            if k >= WARM_UP:
                durations.append(time.monotonic() - asked)
        return {"seconds": durations, "asked": count, "answered": count}

    def crowd(self, callers: int, seconds: float) -> dict[str, Any]:
        """Each of so many clients asks again as soon as it is answered."""
        clients = [self.node.create_client(Ask, "ask", qos_profile=DEEP) for _ in range(callers)]
        self.wait(lambda: all(c.service_is_ready() for c in clients), "ask")
        self.begin()
        until = time.monotonic() + seconds
        durations: list[float] = []
        failures: list[str] = []
        asked = [0] * callers

        def ask(k: int) -> None:
            began = time.monotonic()
            asked[k] += 1
            # A question of its own for each, which no other caller's answer could serve.
            request = Ask.Request(question=f"{QUESTION[:-1]} {k}?", candidates=CANDIDATES)
            future = clients[k].call_async(request)
            future.add_done_callback(lambda done: answered(k, began, done.result()))

        def answered(k: int, began: float, response: Ask.Response) -> None:
            durations.append(time.monotonic() - began)
            if not response.success:
                failures.append(response.message)
            if time.monotonic() < until:
                ask(k)

        for k in range(callers):
            ask(k)
        self.wait(lambda: time.monotonic() >= until, "the end", seconds + 1)
        took = time.monotonic()
        self.wait(lambda: len(durations) == sum(asked), "the last answers")
        return {
            "seconds": durations, "asked": sum(asked), "answered": len(durations),
            "refused": len(failures), "reason": failures[0] if failures else "",
            "fewest": min(asked), "after": time.monotonic() - took,
        }  # fmt: skip

    def watch(self, count: int) -> dict[str, Any]:
        """So many watches that never fire, until a second line comes in."""
        client = ActionClient(self.node, Watch, "watch")
        self.wait(client.server_is_ready, "watch")
        heard = [0] * count

        def hear(k: int) -> None:
            heard[k] += 1

        for k in range(count):
            goal = Watch.Goal(text=f"{LABELS[k % len(LABELS)]} {k}", threshold=1.0)
            sent = client.send_goal_async(goal, lambda _, k=k: hear(k))  # type: ignore[misc]
            self.wait(sent.done, "a goal to be accepted")
        self.wait(lambda: min(heard) > 0, "feedback for each watch")
        print("ready", flush=True)
        until = time.monotonic() + float(sys.stdin.readline())
        self.wait(lambda: time.monotonic() >= until, "the end", PATIENCE * 10)
        return {"feedback": sum(heard)}

    def vlm(self, seconds: int) -> dict[str, Any]:
        """Be a VLM that takes so many seconds for an answer, until a line with a time comes in."""
        url, asked = serve_vlm(seconds)
        said: list[str] = []
        self.node.create_subscription(
            Utterance, "utterances", lambda one: said.append(one.source), 10
        )
        setter = self.node.create_client(
            SetParametersAtomically, "decoder/set_parameters_atomically"
        )
        self.wait(setter.service_is_ready, "the decoder node")
        values = {"words": "vlm", "vlm.url": url, "frames": 2}
        parameters = [Parameter(name, value=v).to_parameter_msg() for name, v in values.items()]
        done = setter.call_async(SetParametersAtomically.Request(parameters=parameters))
        self.wait(done.done, "the decoder node's parameters")
        if not done.result().result.successful:
            raise SystemExit(done.result().result.reason)
        print("ready", flush=True)
        until = time.monotonic() + float(sys.stdin.readline())
        self.wait(lambda: time.monotonic() >= until, "the end", PATIENCE * 10)
        return {"asked": len(asked), "said": said.count("vlm")}


def serve_vlm(seconds: float) -> tuple[str, list[float]]:
    """A stand-in for a VLM, in a thread: its URL, and when it was asked."""
    import asyncio
    import threading

    from aiohttp import web

    asked: list[float] = []
    loop = asyncio.new_event_loop()

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        asked.append(time.monotonic())
        await asyncio.sleep(seconds)
        message = {"role": "assistant", "content": "Something changes."}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})

    async def start() -> int:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    threading.Thread(target=loop.run_forever, daemon=True).start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
    return f"http://127.0.0.1:{port}/v1", asked


def main() -> None:
    """Do what the arguments say."""
    what, count = sys.argv[1], int(sys.argv[2])
    caller = Caller()
    if what == "crowd":
        result = caller.crowd(count, float(sys.argv[3]))
    elif what == "watch":
        result = caller.watch(count)
    elif what == "vlm":
        result = caller.vlm(count)
    elif what == "classify":
        request = Classify.Request(labels=LABELS)
        result = caller.one_by_one(Classify, "classify", request, count)
    else:
        request = Ask.Request(question=QUESTION, candidates=CANDIDATES if what == "ask" else [])
        result = caller.one_by_one(Ask, "ask", request, count)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
