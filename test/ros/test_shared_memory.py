"""What a killed process leaves of Fast DDS's ports hangs nobody that starts after it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vljepa_ros.ros import shared_memory
from vljepa_ros.ros.shared_memory import FOLDER, dead_ports, remove_dead_ports

PORTS = ("fastdds_port7411", "fastrtps_port7413")


def test_only_empty_ports_go(tmp_path: Path) -> None:
    others = ("fastdds_port7411_el", "fastdds_port7411_sl", "sem.fastdds_port7411_mutex", "other")
    for name in (*PORTS, *others):
        (tmp_path / name).touch()
    (tmp_path / "fastdds_port7415").write_bytes(b"in use")
    gone = [tmp_path / name for name in PORTS]
    assert dead_ports(tmp_path, 0) == gone == remove_dead_ports(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {*others, "fastdds_port7415"}
    assert remove_dead_ports(tmp_path / "nowhere") == []


def test_a_port_that_is_just_being_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grows, made_anew, dead = (tmp_path / f"fastdds_port{k}" for k in (1, 2, 3))
    for path in (grows, made_anew, dead):
        path.touch()
    looks = iter(range(100))

    def meanwhile(seconds: float) -> None:
        if next(looks) == 1:
            grows.write_bytes(b"in use")
            other = tmp_path / "new"
            other.touch()
            other.rename(made_anew)  # by somebody who has just begun

    clock = SimpleNamespace(sleep=meanwhile, monotonic=iter(range(100)).__next__)
    monkeypatch.setattr(shared_memory, "time", clock)
    assert remove_dead_ports(tmp_path, 5) == [dead]
    assert grows.is_file() and made_anew.is_file()


@pytest.mark.skipif(not FOLDER.is_dir(), reason="there is no /dev/shm")
def test_a_dead_port_hangs_no_node_that_starts(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
    from graph import NodeProcess, Probe, Stream, domain, noise

    from vljepa_ros.ros.process import FASTDDS_VARIABLE

    monkeypatch.delenv(FASTDDS_VARIABLE, raising=False)  # its default, with shared memory
    number = domain()
    dead = FOLDER / f"fastdds_port{7400 + 250 * number + 11}"  # of the domain's first process
    for _ in range(5):
        dead.unlink(missing_ok=True)  # where an earlier graph has left a whole one
        dead.touch()
        node = NodeProcess("perception_node", number, bundle=tiny_bundle)
        node.wait_for_log("Active.")
        if f"Removed {dead}, which a process that was killed" in node.log:
            break
        assert node.end() == 0  # a process of another test has come first, and removed it
    else:
        pytest.fail(f"five times nobody said that {dead} was removed")
    probe = Probe(number)
    Stream(probe, "camera", noise(1))
    probe.close()
    assert node.end() == 0
