"""Builds engines in a child process, so that a builder that crashes takes no node with it.

Invariant: the child ends when its parent does, and whatever way it ends the parent either has a
whole plan or raises BuildError. The child reads one request, as JSON, from its standard input and
answers with lines of JSON: `{"phase": …, "done": …}`, and at last `{"error": …}` or `{"built": …}`.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from vljepa_ros.errors import BuildError, VLJepaError

from ..engine import Report
from .build import Request, build

log = logging.getLogger(__name__)

STEP = 0.01  # of a build, between two answers of the child
BEAT = 0.5  # seconds after which `report` is told again what it was told last


def build_in_child(request: Request, report: Report) -> None:
    """Have a child process build; its plan is then in the request's target.

    `report` is called at least twice a second; what it raises ends the child and is raised here.
    BuildError where the build fails, or the child crashes.
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}  # also what was put there while running
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, env=environment,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            ended = _follow(child.stdin, child.stdout, request, report)
        except BaseException:
            child.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()  # which ends it, if it has not ended
            code = child.wait()
            child.stdout.close()
        noise.seek(0)
        said = noise.read()
    if said.strip():
        log.debug("The builder of '%s' said:\n%s", request.graph, said.rstrip())
    if "error" in ended:
        raise BuildError(ended["error"])
    if "built" not in ended:
        raise BuildError(_crashed(request, code, said))


def _follow(
    stdin: IO[bytes], stdout: IO[bytes], request: Request, report: Report
) -> dict[str, Any]:
    """Send the request and pass the child's progress on; its last answer, or nothing."""
    try:
        stdin.write(json.dumps(request.as_json()).encode() + b"\n")
        stdin.flush()
    except BrokenPipeError:
        return {}  # it ended before it read; its exit code says how
    told: tuple[str, float] = ("starting the builder", 0.0)
    for line in _lines(stdout):
        if line is not None:
            message = json.loads(line)
            if "phase" not in message:
                return dict(message)
            told = message["phase"], message["done"]
        report(*told)
    return {}


def _lines(stdout: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a child, and None whenever it has said nothing for a while."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(BEAT):
                yield None
                continue
            read = os.read(stdout.fileno(), 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from lines


def _crashed(request: Request, code: int, said: str) -> str:
    how = f"with exit code {code}"
    if code < 0:
        try:
            how = f"by {signal.Signals(-code).name}"
        except ValueError:
            how = f"by signal {-code}"
        if code == -signal.SIGKILL:
            how += ", as the kernel ends processes where memory is short"
    last = " ".join(said.strip().splitlines()[-1:])[:300].rstrip(".")
    return (
        f"The builder of '{request.graph}' in {request.precision} was ended {how}"
        f"{f' ({last})' if last else ''}; try again with more free memory, or another precision."
    )


def main() -> None:
    """The child: build what the parent asks for."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints must not get among the answers

        def answer(**message: Any) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        values = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_parent, daemon=True).start()
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        try:
            build(_request(values), _throttled(lambda phase, done: answer(phase=phase, done=done)))
        except VLJepaError as error:
            answer(error=str(error))
        else:
            answer(built=True)


def _request(values: dict[str, Any]) -> Request:
    shapes = {name: tuple(map(tuple, sizes)) for name, sizes in values.pop("shapes").items()}
    return Request(**{**values, "shapes": shapes, "options": tuple(values["options"])})


def _end_with_parent() -> None:
    """End this process when the parent closes its side of the pipe, be it by dying."""
    os.read(0, 1)
    os._exit(1)


def _throttled(report: Report) -> Report:
    """Pass on what goes forward by a step or more; called from threads of the library."""
    lock, last = threading.Lock(), [-STEP]

    def passed(phase: str, done: float) -> None:
        with lock:
            if done - last[0] >= STEP:
                last[0] = done
                report(phase, round(done, 3))

    return passed


if __name__ == "__main__":
    main()
