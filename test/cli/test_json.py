"""What the commands print with --json: the records of one table, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_records import CHECKS, check_record

from vljepa_ros.cli.records import FIELDS, KINDS, RECORDS, moment_record, record
from vljepa_ros.memory.moment import Moment

ROOT = Path(__file__).resolve().parents[2]
NOON = 1_700_000_000_123_456_789


def moment() -> Moment:
    return Moment(
        "robbie", "front", "what?", 3, NOON, NOON + 10**9, np.zeros(2), "a \u2028 :cat: [red]",
        familiarity=math.nan,
    )  # fmt: skip


def test_every_name_is_of_a_record_and_every_record_of_names() -> None:
    used = {name for names in RECORDS.values() for name in names}
    assert used == set(FIELDS)
    assert {field.kind for field in FIELDS.values()} == set(KINDS) == {*CHECKS, "time"}
    assert all(len(set(names)) == len(names) for names in RECORDS.values())


def test_a_record_has_its_names_in_their_order_and_times_twice() -> None:
    found = record("watch: score", score=1 / 3, text="it falls", camera="front", stamp=NOON)
    assert list(found.items()) == [
        ("type", "score"), ("camera", "front"), ("stamp", "2023-11-14T22:13:20.123Z"),
        ("stamp_ns", NOON), ("text", "it falls"), ("score", 0.3333),
    ]  # fmt: skip
    check_record("watch: score", found)
    with pytest.raises(ValueError, match=r"'watch: score' has other names: .*'text'"):
        record("watch: score", score=0.5, camera="front", stamp=NOON)
    simulated = record("watch: score", score=math.inf, text="", camera="", stamp=7)
    assert (simulated["stamp"], simulated["stamp_ns"], simulated["score"]) == (None, 7, None)


def test_what_a_model_cannot_tell_is_null() -> None:
    found = moment_record("recall", moment(), score=0.5, weak=False)
    check_record("recall", found)
    assert found["familiarity"] is None
    again = record("watch: moment", camera="", segment_id=1, start=1, end=2, text="", score=0.1,
                   familiarity=-1.0)  # fmt: skip
    assert again["familiarity"] is None


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


NOISY = """
import ctypes, os, subprocess, sys
import vljepa_ros.console as console
import typer
from vljepa_ros.cli import app as table, main

def say(as_json: bool = typer.Option(False, "--json")) -> None:
    print("a print of Python")
    ctypes.CDLL(None).puts(b"a print of C")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "a print of a child"], check=True)
    console.console.print("a print of ours")
    if as_json:
        text = "\\u2028 :cat: [red] \\udcff \\u6249"
        console.print_json({"text": text, "score": float("nan")}, True)

sys.modules["vljepa_ros.cli.say"] = sys.modules["__main__"]
table.COMMANDS["say"] = ("say", "say")
main()
"""


def test_nothing_but_json_goes_to_stdout() -> None:
    done = run(NOISY, "say", "--json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # of bytes: U+2028 ends none
    assert json.loads(line) == {"text": "\u2028 :cat: [red] \udcff 扉", "score": None}
    for said in (b"of Python", b"of C", b"of a child", b"of ours"):
        assert b"a print " + said in done.stderr
    assert b"a print of C" in run(NOISY, "say", PYTHONIOENCODING="utf-8").stdout  # without --json


def tables() -> Any:
    spec = importlib.util.spec_from_file_location("json_tables", ROOT / "scripts/json_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_record() -> None:
    module, text = tables(), (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert {name for _, name, _ in module.TABLE.findall(text)} == set(module.TABLES)
    assert text == module.filled(text), "run: python scripts/json_tables.py"
    for command in RECORDS:
        assert f"| `{command.partition(': ')[0]}` |" in text


def test_what_every_command_prints_is_held_to_its_record() -> None:
    """By the tests of the commands, which run them."""
    texts = [file.read_text("utf-8") for file in Path(__file__).parent.glob("test_*.py")]
    for kind in RECORDS:
        assert any(f'check_record("{kind}", ' in text for text in texts), kind


MANY = """
import sys
import typer
import vljepa_ros.console as console
from vljepa_ros.cli import app as table, main

def say(how: str, as_json: bool = typer.Option(False, "--json")) -> None:
    while True:
        if how == "json":
            console.print_json("x" * 99, True)
        elif how == "text":
            console.console.print("x" * 99)
        else:  # as a Rich that knows no broken pipes
            print("x" * 99, flush=True)

sys.modules["vljepa_ros.cli.say"] = sys.modules["__main__"]
table.COMMANDS["say"] = ("say", "say")
main()
"""
HOW = [["json", "--json"], ["text"], ["plain"]]


def many(how: list[str]) -> subprocess.Popen[bytes]:
    """A command that has begun to print, and does not end."""
    process = subprocess.Popen(
        [sys.executable, "-c", MANY, "say", *how], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


@pytest.mark.parametrize("how", HOW)
def test_where_nobody_reads_on_a_command_ends_without_a_word(how: list[str]) -> None:
    process = many(how)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 141)


def test_commands_that_nobody_reads_end_without_a_word(tiny_bundle: Path) -> None:
    commands = {
        ("--help",): 1,  # Typer's own
        ("doctor", "--json", "--bundle", str(tiny_bundle)): 141,
        ("bundle", "show", str(tiny_bundle)): 141,
        ("engines", "list"): 141,
    }
    read, write = os.pipe()
    os.close(read)
    code = "from vljepa_ros.cli import main; main()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *words], stdout=write, stderr=subprocess.PIPE)
        for words in commands
    ]
    os.close(write)
    for process, wanted in zip(processes, commands.values()):
        _, said = process.communicate(timeout=60)
        assert (said, process.returncode) == (b"", wanted)


@pytest.mark.parametrize("how", HOW)
def test_ctrl_c_ends_a_command_without_a_word(how: list[str]) -> None:
    process = many(how)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (said, process.returncode) == (b"", 130)
