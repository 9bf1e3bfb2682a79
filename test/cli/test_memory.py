"""`vljepa memory` as a user meets it, beside a store that a robot has open."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from json_records import check_record
from moments import MODEL, moment, open_store

pytest.importorskip("qdrant_edge", reason="no qdrant_edge: pip install qdrant-edge-py")


def vljepa(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from vljepa_ros.cli import main; main()", *map(str, arguments)],
        text=True, capture_output=True, timeout=60, check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


def test_looking_does_not_need_the_robot_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with open_store(folder) as opened:
        opened.add([moment(n, "front" if n % 3 else "rear") for n in range(9)])
        opened.set_text(moment(7).id, "the cup falls", 0.5)
        opened.pin(moment(7).id, True)
        shown = vljepa("memory", "show", VLJEPA_MEMORY=str(folder))
        assert shown.returncode == 0, shown.stderr
        assert f"{MODEL}, 16 numbers" in shown.stdout
        assert "9, 1 of them pinned" in shown.stdout and "front (6), rear (3)" in shown.stdout
        facts = json.loads(vljepa("memory", "show", "--store", folder, "--json").stdout)
        check_record("memory show", facts)
        assert (facts["start_ns"], facts["end_ns"]) == (moment(0).start_ns, moment(8).end_ns)
        assert facts["moments"] == 9 and facts["cameras"] == {"front": 6, "rear": 3}
        listed = vljepa("memory", "list", "--store", folder, "--limit", 2).stdout
        assert moment(8).id in listed and moment(6).id not in listed
        assert re.search(r"front +the cup falls +pinned +" + moment(7, "front").id, listed)
        rows = json.loads(
            vljepa("memory", "list", "--store", folder, "--camera", "rear", "--json").stdout
        )
        for row in rows:
            check_record("memory list", row)
        assert [row["id"] for row in rows] == [moment(n, "rear").id for n in (6, 3, 0)]
        refused = vljepa("memory", "pin", moment(8).id, "--store", folder)
        assert refused.returncode == 1
        assert f"open for writing in process {os.getpid()}" in refused.stderr


def test_pins_offline(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with open_store(folder) as opened:
        opened.add([moment(n) for n in range(3)])
    done = vljepa("memory", "pin", moment(0).id, "nobody", moment(2).id, "--store", folder)
    assert done.returncode == 1 and "There is no moment nobody in" in done.stderr
    assert vljepa("memory", "unpin", moment(2).id, "--store", folder).returncode == 0
    with open_store(folder) as opened:
        assert [m.pinned for m in opened.newest()] == [False, False, True]


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("list",), ("pin", "x"), ("unpin", "x"), ("push", "--url", "http://127.0.0.1:9")],
)
def test_no_store_is_a_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = vljepa("memory", *arguments, "--store", tmp_path / "none")
    assert (done.returncode, done.stderr) == (1, f"There is no moment store in {tmp_path}/none.\n")


def test_a_server_that_does_not_answer_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="pip install qdrant-client")
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1)])
        done = vljepa("memory", "push", "--store", tmp_path / "s", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "The Qdrant server at http://127.0.0.1:9 does not answer" in done.stderr
