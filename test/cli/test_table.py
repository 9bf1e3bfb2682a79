"""Every command against 80 columns, pipes, --json, Ctrl-C, typos, absent graphs and wrong paths.

TABLE has a row for every command and a cell for every column: what is run, which other test holds
it, or why it means nothing there. A command without a row, and a test that is gone, fail.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import signal
import struct
import termios
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import MomentStore

pytest.importorskip("rclpy", reason="rclpy is not installed: run scripts/setup")
pytest.importorskip("qdrant_edge", reason="no qdrant_edge: pip install qdrant-edge-py")

from commands import GONE, Commands, Run
from graph import domain
from terminals import open_terminal

TEST = Path(__file__).resolve().parents[1]
WIDTH = 80
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SAID = "a hand takes the blue cube, puts it beside the yellow mug, and is gone before it is seen"


@dataclass(frozen=True)
class No:
    """Nothing to test, and why."""

    reason: str


@dataclass(frozen=True)
class By:
    """Another test holds it: a file below test/, and its function."""

    file: str
    test: str


@dataclass(frozen=True)
class At:
    """A signal that comes at an audit event, or as a file is opened whose path ends so."""

    arguments: str
    event: str


Cell = str | No | By  # a string: arguments; {bundle}, {store}, ... are made by `places`


@dataclass(frozen=True)
class Row:
    """A command. `work`: it needs the packages of the extra `train`."""

    shows: Cell  # it ends well, and prints something: to a file, a terminal, a pipe nobody reads
    stops: At | No | By  # where SIGINT and SIGTERM come while it works or waits
    alone: Cell  # where nobody is in the graph
    wrong: Cell  # a path, {missing}, that is not there
    json: Cell = No("it has no --json")  # with --json
    work: bool = False


ASK, MCP = "cli/test_ask.py", "agents/test_mcp.py"
LISTEN, UP, STATUS = "cli/test_listen.py", "cli/test_up.py", "cli/test_status.py"
BENCH, ENGINES = "bench/test_bench.py", "cli/test_engines.py"
NO_GRAPH = No("it asks no graph")
NO_PATH = No("it takes no path")
LONG = No("it prints a line or two, through the same console, after minutes of work")
WAITS = By("cli/test_table.py", "test_a_signal_ends_what_waits_for_a_graph")
READ = At("--bundle {bundle}", "bundle.yaml")

TABLE = {
    "up": Row(
        shows=By(UP, "test_a_terminal_gets_the_live_view_or_lines"),
        stops=By(UP, "test_a_signal_ends_it_with_a_summary"),
        alone=No("it brings its own graph"),
        wrong=By(UP, "test_what_is_wrong_is_one_sentence_and_the_last"),
    ),
    "status": Row(
        shows=By(STATUS, "test_it_tells_what_runs_and_what_is_in_effect"),
        json=By(STATUS, "test_it_tells_what_runs_and_what_is_in_effect"),
        stops=WAITS,
        alone=By(STATUS, "test_without_a_graph"),
        wrong=NO_PATH,
    ),
    "listen": Row(
        shows=By(LISTEN, "test_it_ends_quietly_where_nobody_reads_on"),
        json=By(LISTEN, "test_json_has_a_line_for_each_message"),
        stops=By(LISTEN, "test_it_says_that_nobody_publishes_and_ends_on_a_signal"),
        alone=By(LISTEN, "test_it_says_that_nobody_publishes_and_ends_on_a_signal"),
        wrong=NO_PATH,
    ),
    "ask": Row(
        shows=By(ASK, "test_ask_with_candidates"),
        json=By(ASK, "test_ask_with_candidates"),
        stops=WAITS,
        alone=By(ASK, "test_without_a_graph"),
        wrong=NO_PATH,
    ),
    "classify": Row(
        shows=By(ASK, "test_classify"),
        json=By(ASK, "test_classify"),
        stops=WAITS,
        alone=By(ASK, "test_without_a_graph"),
        wrong=NO_PATH,
    ),
    "watch": Row(
        shows=By(ASK, "test_a_terminal_gets_a_bar"),
        json=By(ASK, "test_watch_shows_scores_until_its_time_is_over"),
        stops=By(ASK, "test_a_signal_cancels_the_watch"),
        alone=By(ASK, "test_without_a_graph"),
        wrong=NO_PATH,
    ),
    "mcp": Row(
        shows=By(MCP, "test_stdout_is_the_protocol_s_alone_and_its_end_is_the_server_s"),
        stops=By(MCP, "test_over_http_for_who_knows_the_token"),
        alone=By("agents/test_silent.py", "test_where_nobody_perceives"),
        wrong=NO_PATH,
    ),
    "index": Row(
        shows="{video} --bundle {bundle} --store {new}",
        json="{video} --bundle {bundle} --store {new}",
        stops=At("{video} --bundle {bundle} --store {new}", "bundle.yaml"),
        alone=NO_GRAPH,
        wrong="{missing}.mp4",
    ),
    "recall": Row(
        shows="'a hand' --store {store} --bundle {bundle}",
        json="'a hand' --store {store} --bundle {bundle}",
        stops=At("'a hand' --store {store} --bundle {bundle}", "bundle.yaml"),
        alone=By(ASK, "test_without_a_graph"),
        wrong="'a hand' --bundle {bundle} --store {missing}",
    ),
    "memory show": Row(
        shows="--store {store}",
        json="--store {store}",
        stops=At("--store {store}", "sqlite3.connect"),
        alone="--namespace robot9",
        wrong="--store {missing}",
    ),
    "memory list": Row(
        shows="--store {store}",
        json="--store {store}",
        stops=At("--store {store}", "sqlite3.connect"),
        alone="--namespace robot9",
        wrong="--store {missing}",
    ),
    "memory pin": Row(
        shows=No("it prints nothing"),
        stops=At("x --store {store}", "sqlite3.connect"),
        alone="x --namespace robot9",
        wrong="x --store {missing}",
    ),
    "memory unpin": Row(
        shows=No("it prints nothing"),
        stops=At("x --store {store}", "sqlite3.connect"),
        alone="x --namespace robot9",
        wrong="x --store {missing}",
    ),
    "memory push": Row(
        shows=No("it prints a line, once a server has taken all"),
        stops=At("--url http://127.0.0.1:9 --store {store}", "sqlite3.connect"),
        alone="--url http://127.0.0.1:9 --namespace robot9",
        wrong="--url http://127.0.0.1:9 --store {missing}",
    ),
    "calibrate": Row(
        shows=LONG,
        stops=At("{bundle} {video} --out {new}", "bundle.yaml"),
        alone=By("cli/test_calibrate_live.py", "test_a_camera_that_sends_nothing_is_a_sentence"),
        wrong="{bundle} {missing}.mp4 --out {new}",
    ),
    "doctor": Row(
        shows="--bundle {bundle}",
        json="--bundle {bundle}",
        stops=READ,
        alone=NO_GRAPH,
        wrong="--bundle {missing}",
    ),
    "bundle show": Row(
        shows="{bundle}", stops=At("{bundle}", "bundle.yaml"), alone=NO_GRAPH, wrong="{missing}"
    ),
    "bundle verify": Row(
        shows="{bundle}", stops=At("{bundle}", "bundle.yaml"), alone=NO_GRAPH, wrong="{missing}"
    ),
    "bundle familiarity": Row(
        shows=LONG,
        stops=At("{bundle}", "bundle.yaml"),
        alone=NO_GRAPH,
        wrong="{missing}",
        work=True,
    ),
    "engines build": Row(
        shows=By(ENGINES, "test_a_terminal_gets_a_bar"),
        stops=READ,
        alone=NO_GRAPH,
        wrong="--bundle {missing}",
    ),
    "engines list": Row(
        shows="",
        json="",
        stops=No("it reads a few small files"),
        alone=NO_GRAPH,
        wrong=NO_PATH,
    ),
    "engines clean": Row(
        shows="", stops=No("it removes a few files"), alone=NO_GRAPH, wrong=NO_PATH
    ),
    "bench cost": Row(
        shows="--count",
        json="--count",
        stops=No("bench engines stops alike, and this opens no file of ours"),
        alone=NO_GRAPH,
        wrong=NO_PATH,
        work=True,
    ),
    "bench engines": Row(
        shows=By(BENCH, "test_engines_are_measured_whole"),
        json=By(BENCH, "test_engines_are_measured_whole"),
        stops=READ,
        alone=NO_GRAPH,
        wrong="--bundle {missing}",
    ),
    "bench services": Row(
        shows=No("it measures for minutes; its table is console.print_table's"),
        json=No("it measures for minutes; it prints as the other benchmarks do"),
        stops=No("it stops as bench node does, but works for seconds before it opens a file"),
        alone=No("it brings its own graph"),
        wrong="--bundle {missing}",
    ),
    "bench memory": Row(
        shows="--moments 1000 --dim 8 --queries 10",
        json="--moments 1000 --dim 8 --queries 10",
        stops=At("--moments 1000 --dim 8 --queries 10", "sqlite3.connect"),
        alone=NO_GRAPH,
        wrong="--folder {missing}",
    ),
    "bench node": Row(
        shows=No("it measures for minutes; its table is console.print_table's"),
        json=By(BENCH, "test_the_node_is_measured_with_a_decoder_that_decodes"),
        stops=READ,
        alone=No("it brings its own graph"),
        wrong="--bundle {missing}",
    ),
    "data": Row(
        shows=No("it prints nothing but its progress, to stderr"),
        stops=By("cli/test_table.py", "test_ctrl_c_ends_the_workers_without_a_word"),
        alone=NO_GRAPH,
        wrong="--episodes 1 --folder {file}",
        work=True,
    ),
    "train": Row(
        shows=LONG,
        stops=At("{new} --data {missing}.jsonl --from {bundle}", "bundle.yaml"),
        alone=NO_GRAPH,
        wrong="{new} --data {missing} --from {missing}",
        work=True,
    ),
    "export": Row(
        shows=LONG,
        stops=No("it reads in C what it starts from; compare and evaluate stop alike"),
        alone=NO_GRAPH,
        wrong="{missing} {new}",
        work=True,
    ),
    "evaluate": Row(
        shows=LONG,
        stops=At("{bundle}", "bundle.yaml"),
        alone=NO_GRAPH,
        wrong="{missing}",
        work=True,
    ),
    "compare": Row(
        shows=LONG,
        stops=At("{bundle} {new}.json", "bundle.yaml"),
        alone=NO_GRAPH,
        wrong="{missing} {new}.json",
        work=True,
    ),
    "timeline": Row(
        shows="{video} {new}.png --bundle {bundle}",
        stops=At("{video} {new}.png --bundle {bundle}", "bundle.yaml"),
        alone=NO_GRAPH,
        wrong="{missing}.mp4 {new}.png --bundle {bundle}",
    ),
}


def walk(
    command: Any, path: tuple[str, ...], context: Any
) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from walk(command.get_command(context, name), (*path, name), context)


ROOT = typer.main.get_command(app)
ALL = dict(walk(ROOT, (), ROOT.make_context("vljepa", [], resilient_parsing=True)))
GROUPS = {path for path, command in ALL.items() if hasattr(command, "list_commands")}
NAMES = [" ".join(path) for path in ALL if path not in GROUPS]
PATHS = pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(("vljepa", *path)))


def options(path: tuple[str, ...]) -> list[str]:
    return [name for one in ALL[path].params for name in one.opts if name.startswith("--")]


def cells(column: str) -> Any:
    """The rows of a column that are to be run."""
    rows = [
        pytest.param(name, cell, id=name)
        for name, row in TABLE.items()
        if not isinstance(cell := getattr(row, column), (No, By))
    ]
    return pytest.mark.parametrize(("name", "cell"), rows)


def test_every_command_has_a_row_and_every_cell_a_test_or_a_reason() -> None:
    assert sorted(TABLE) == sorted(NAMES)
    for name, row in TABLE.items():
        has_json = "--json" in options(tuple(name.split()))
        assert has_json or isinstance(row.json, No), name
        assert not has_json or row.json != No("it has no --json"), name
        for cell in vars(row).values():
            if isinstance(cell, By):
                tree = ast.parse((TEST / cell.file).read_text("utf-8"))
                found = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
                assert cell.test in found, cell
            assert not isinstance(cell, No) or cell.reason


def test_no_parameter_is_of_a_type_that_the_oldest_typer_does_not_know() -> None:
    """Typer 0.9, which Ubuntu 24.04 has, fails at `X | None`, and with it all of `vljepa`."""
    for path, command in ALL.items():
        if path not in GROUPS:
            hints = inspect.get_annotations(inspect.unwrap(command.callback), eval_str=True)
            unions = [name for name, one in hints.items() if isinstance(one, types.UnionType)]
            assert hints and not unions, (path, unions)


# What Typer itself does, in this process: help and what it refuses.


def typed(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        app(list(arguments), prog_name="vljepa")
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


@PATHS
def test_help_is_whole_at_80_columns(path: tuple[str, ...], columns: None) -> None:
    code, out, err = typed(*path, "--help")
    assert (code, err) == (0, "")
    assert "…" not in out and max(map(len, out.splitlines())) <= WIDTH
    wanted = set(options(path))
    if path in GROUPS:
        wanted |= set(ALL[path].list_commands(None))
    assert wanted <= set(re.findall(r"[\w-]+", COLOUR.sub("", out)))


def refused(path: tuple[str, ...], *arguments: str) -> str:
    """The sentence with which it is refused."""
    code, out, err = typed(*path, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and len(err) > WIDTH / 2, err
    assert err.endswith(f" See {' '.join(('vljepa', *path))} --help.\n")
    return err


@PATHS
def test_a_typo_is_one_sentence_that_names_what_was_meant(path: tuple[str, ...]) -> None:
    for option in options(path):
        typo = option[:-1] + ("x" if option[-1] != "x" else "y")
        said = refused(path, typo)
        assert f"has no option {typo}; did you mean " in said
        assert option in re.split(r" or |[?.]? ", said.partition("did you mean ")[2])
    for name in ALL[path].list_commands(None) if path in GROUPS else ():
        typo = name[:1] + name[2:] + "x" if len(name) > 3 else name + "x"
        said = refused(path, typo)
        assert f"has no command '{typo}'; did you mean " in said and name in said


@PATHS
def test_what_nothing_resembles_is_one_sentence(path: tuple[str, ...]) -> None:
    assert "has no option --qqqq. See" in refused(path, "--qqqq")
    if path in GROUPS:
        assert "has no command 'qqqq'. See" in refused(path, "qqqq")
    elif "--json" not in options(path):
        assert "has no option --json" in refused(path, "--json")


# What the commands do, each run in a process of its own.


@pytest.fixture(scope="module")
def places(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("table")
    loaded = load_bundle(tiny_bundle)
    vector = np.eye(1, loaded.embedding_dim, dtype=np.float32)[0]
    with MomentStore(folder / "store", loaded.model_id, loaded.embedding_dim) as opened:
        opened.add([
            Moment("robbie", camera, "what?", k, k * 10**9, (k + 1) * 10**9, vector, SAID)
            for k, camera in enumerate(("front", "rear"), 1_700_000_000)
        ])  # fmt: skip
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for k in range(30):
        writer.write(np.full((48, 64, 3), 8 * k, np.uint8))
    writer.release()
    (folder / "file").write_text("not a folder")
    return {
        "bundle": tiny_bundle, "store": folder / "store", "video": folder / "a.avi",
        "missing": folder / "not there" / "at all", "file": folder / "file",
    }  # fmt: skip


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    nothing = tmp_path_factory.mktemp("cache")
    running = Commands(
        ROS_DOMAIN_ID=str(domain()), XDG_CACHE_HOME=str(nothing), VLJEPA_ENGINES=str(nothing)
    )
    yield running
    running.close()


@pytest.fixture
def given(places: dict[str, Path], tmp_path: Path) -> Any:
    """Arguments, with their places."""
    count = iter(range(9))

    def make(name: str, arguments: str) -> list[str]:
        if TABLE[name].work:
            pytest.importorskip("torch", reason="no torch: pip install 'vljepa_ros[train]'")
        known = {key: shlex.quote(str(path)) for key, path in places.items()}
        known["new"] = shlex.quote(str(tmp_path / f"new{next(count)}"))
        return [*name.split(), *shlex.split(arguments.format(**known))]

    return make


def words(text: str) -> set[str]:
    return set(COLOUR.sub("", text).split())


def on_terminal(commands: Commands, arguments: list[str]) -> tuple[int, str]:
    """The exit code, and what a terminal of 80 columns gets."""
    ours, theirs = open_terminal()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 4096):
                shown.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    run = commands.start(*arguments, stdout=os.ttyname(theirs))
    code = run.code()
    os.close(theirs)
    reader.join()
    os.close(ours)
    return code, shown.decode()


def quiet(run: Run) -> None:
    """No traceback, and nothing that Python says as it ends."""
    for noise in ("Traceback", "Exception ignored", "BrokenPipe", "Error:"):
        assert noise not in run.err, run.err


NUMBERS = re.compile(r"\d+(\.\d+)?")


@cells("shows")
def test_it_is_whole_in_files_and_at_80_columns_and_ends_where_nobody_reads(
    name: str, cell: str, commands: Commands, given: Any
) -> None:
    unread = commands.start(*given(name, cell), stdout=GONE)
    file = commands.run(*given(name, cell))
    assert (file.poll(), bool(file.out)) == (0, True), file.err
    assert "\x1b" not in file.out + file.err and "…" not in file.out
    quiet(file)
    code, shown = on_terminal(commands, given(name, cell))
    assert code == 0 and "…" not in shown
    for line in COLOUR.sub("", shown).splitlines():
        assert len(line) <= WIDTH or len(line.split()) <= 3, line  # a word that is longer
    wanted, found = ({NUMBERS.sub("0", one) for one in words(text)} for text in (file.out, shown))
    assert wanted <= found
    assert unread.code() == 141, unread.err
    quiet(unread)


@cells("json")
def test_json_is_all_of_stdout(name: str, cell: str, commands: Commands, given: Any) -> None:
    run = commands.run(*given(name, cell), "--json")
    assert run.code() == 0, run.err
    if name == "index":
        assert [json.loads(line)["type"] for line in run.out.splitlines()][-1] == "summary"
    else:
        json.loads(run.out)


@cells("stops")
def test_a_signal_ends_its_work(name: str, cell: At, commands: Commands, given: Any) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        run = commands.run(*given(name, cell.arguments), at=cell.event, number=number)
        assert run.code() == code, (number, run.out, run.err)
        quiet(run)


def test_a_signal_ends_what_waits_for_a_graph(commands: Commands) -> None:
    runs = {
        (name, number): commands.start(name, *arguments)
        for name, *arguments in (
            ("ask", "what?", "--timeout", "600"), ("classify", "it", "--timeout", "600"),
            ("status",),
        )
        for number in (signal.SIGINT, signal.SIGTERM)
    }  # fmt: skip
    for (_, number), run in runs.items():
        run.until(lambda run=run: run.takes(signal.SIGTERM))
        os.kill(run.pid, number)
    for (name, _), run in runs.items():
        assert (run.code(), run.out) == (1, "")
        assert run.err.count("\n") == 1
        assert run.err.startswith("Stopped before ") or name == "status"  # which waits for seconds
        quiet(run)


def test_where_nobody_is_in_the_graph_it_is_said(commands: Commands, given: Any) -> None:
    """All at once: each looks for seconds."""
    asked = {n: row.alone for n, row in TABLE.items() if isinstance(row.alone, str)}
    runs = {name: commands.start(*given(name, cell)) for name, cell in asked.items()}
    for run in runs.values():
        assert (run.code(), run.out) == (1, "")
        assert run.err.startswith("Nobody offers /robot9/") and run.err.count("\n") == 1, run.err


def test_ctrl_c_ends_the_workers_without_a_word(commands: Commands, given: Any) -> None:
    """A terminal sends SIGINT to all processes of a command."""
    run = commands.start(*given("data", "--episodes 2 --folder {new}"))
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")

    def works() -> bool:
        lines = [Path(f"/proc/{child}/cmdline") for child in children.read_text().split()]
        return sum(b"spawn_main" in line.read_bytes() for line in lines) == 2

    run.until(works)
    os.killpg(run.pid, signal.SIGINT)
    assert (run.code(), run.out, run.err) == (130, "", "")


@cells("wrong")
def test_a_path_that_is_wrong_is_named(
    name: str, cell: str, commands: Commands, given: Any, places: dict[str, Path]
) -> None:
    run = commands.run(*given(name, cell))
    assert run.code() == 1
    quiet(run)
    path = str(places["file" if "{file}" in cell else "missing"])
    if name == "doctor":  # whose findings are its output
        assert path in run.out
        return
    assert run.out == ""
    *logged, last = run.err.splitlines()
    assert path in last, run.err
    if not name.startswith("bench "):  # which start nodes, whose logs come before
        assert not logged, run.err
