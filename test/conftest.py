"""What every test shares: import paths, a tiny bundle, deterministic property tests."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

TEST = Path(__file__).resolve().parent
sys.path.insert(0, str(TEST / "support"))
if importlib.util.find_spec("vljepa_ros") is None:
    sys.path.insert(0, str(TEST.parent))
importlib.import_module("vljepa_ros")  # silences ONNX Runtime, before a test imports that itself

# A shell without job control has what it runs in the background ignore Ctrl-C, and all that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# By UDP alone: what tests kill leaves nothing in shared memory then that could hang others
# (Fast DDS 3.2). Tests of the default transports take the variable away: `default_transports`.
FASTDDS_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
os.environ.setdefault(FASTDDS_VARIABLE, "UDPv4?sockets_size=4MB&non_blocking=true")

SCHEDULING = importlib.import_module("encoders").scheduling()

# The same examples on every machine, and no verdict by the clock of a busy one.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


def pytest_sessionstart() -> None:
    free_shared_memory()


def pytest_sessionfinish() -> None:
    free_shared_memory()


def free_shared_memory() -> None:
    """Remove what processes that were killed have left of Fast DDS, 8 MB each: nobody else does.

    Who lives has locked a file beside his; who has just begun may be about to.
    """
    for lock in Path("/dev/shm").glob("fastdds_*_el"):
        memory = lock.with_name(lock.name.removesuffix("_el"))
        if memory.name.startswith("fastdds_port"):  # small, and used again
            continue
        try:
            with open(lock) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - lock.stat().st_mtime > 60:
                    memory.unlink(missing_ok=True)
                    lock.unlink(missing_ok=True)
        except OSError:  # it is in use, or somebody else's
            continue


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """Leave the processor as it was: a training may leave it taking subnormal numbers for zeros.

    That lasts in this thread, for tests that have nothing to do with torch.
    """
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def usual_scheduling() -> Iterator[None]:
    """No test may leave this process, and all that it starts from then on, a realtime priority.

    It would starve whatever else the machine does: an encoder of AV1 did (`encoders`).
    """
    from encoders import scheduling

    yield
    assert (scheduling(), os.sched_getscheduler(0)) == (SCHEDULING, SCHEDULING[0])


@pytest.fixture(scope="module")
def default_transports() -> Iterator[None]:
    """For raw images that are larger than what a socket holds unless its system allows for more."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv(FASTDDS_VARIABLE, raising=False)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny bundle; read it, do not alter it."""
    from bundles import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
