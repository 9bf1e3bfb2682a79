"""What the docs say is so: commands that the parsers take, files, launch arguments, parameters.

Every command counts, also those that take long or need what a test has not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pages import PAGES, REASONS, ROOT, Block, blocks, prose, words
from parameter_files import check_parameters, specs

from vljepa_ros.cli.app import app
from vljepa_ros.training.lines import read_lines

BLOCKS = [block for page in PAGES for block in blocks(page)]
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
NAME = re.compile(r"([a-z][\w./-]*)( +[^ {]|$)")  # that a line begins with; of no tool of MCP
LAUNCH = ROOT / "launch" / "perception.launch.py"


def named(block: Block) -> str:
    return block.where


def every_command() -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and its words; of the blocks."""
    for block in BLOCKS:
        for command in block.commands():
            for taken in words(command.bare):
                yield f"{block.where}: {command.text}", taken


def every_mention(program: str) -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and its words; of commands within sentences and tables."""
    for page in PAGES:
        for text in INLINE.findall(prose(page)):
            if text.startswith(program + " "):
                text = text.replace("\\|", "|").replace("\n", " ")
                yield f"{page.name}: {text}", text.split()


# ------------------------------------------------------------------ blocks


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_a_block_is_commands_or_names_no_program(block: Block) -> None:
    if block.commands():
        assert not block.mark or block.mark in REASONS, f"one of {REASONS}, not '{block.mark}'"
        return
    assert not block.mark, "a mark without a command"
    if block.language == "":
        firsts = {found[1] for line in block.lines if (found := NAME.match(line))}
        assert not [word for word in firsts if shutil.which(word)], "add it to PROGRAM"


def test_what_is_run_and_what_is_not_can_be_told() -> None:
    commands = [command for block in BLOCKS for command in block.commands()]
    run = [command for command in commands if not command.block.mark]
    assert len(run) > 25 and len(commands) - len(run) > 25
    assert any(command.shown for command in run)


# ------------------------------------------------------------------ vljepa


def parse(taken: list[str]) -> None:
    """Let the real parser judge a command; it raises what a user would be told."""
    command: Any = typer.main.get_command(app)
    parent, name, rest = None, "vljepa", taken[1:]
    while True:
        if not hasattr(command, "commands") and not hasattr(command, "list_commands"):
            command.make_context(name, rest, parent=parent)
            return
        parent = command.context_class(command, info_name=name, parent=parent)
        assert rest, f"{name} what?"
        if rest[0].startswith("-"):
            command.make_context(name, rest, parent=parent, resilient_parsing=True)
            return
        name, found = rest[0], command.get_command(parent, rest[0])
        assert found is not None, f"there is no command {name}"
        command, rest = found, rest[1:]


def test_the_parser_takes_every_command() -> None:
    taken = [(where, one) for where, one in every_command() if one[0] == "vljepa"]
    assert len(taken) > 40
    wrong = []
    for where, command in taken:
        try:
            parse(command)
        except Exception as error:  # of the parser, whose classes are its own
            wrong.append(f"{where}: {getattr(error, 'message', error)}")
    assert wrong == []


def options(path: list[str]) -> set[str]:
    """The options of a command, given by its words."""
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="vljepa")
    for name in path:
        if not hasattr(command, "list_commands"):
            break
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
    return {"--help", *(name for p in command.params for name in (*p.opts, *p.secondary_opts))}


def test_what_is_mentioned_exists() -> None:
    mentions = list(every_mention("vljepa"))
    assert len(mentions) > 40
    wrong = []
    for where, (_, *rest) in mentions:
        path = [word for word in rest if not word.startswith("-")][:2]
        given = {word.split("=")[0] for word in rest if re.match(r"--\w", word)}
        if path and path[0] in ("…", "COMMAND"):  # it is enough that one has them
            path = next(([name] for name in ("ask", "up") if given <= options([name])), ["ask"])
        try:
            if missing := given - options(path if not rest[0].startswith("-") else []):
                wrong.append(f"{where}: no option {', '.join(sorted(missing))}")
        except AssertionError as error:
            wrong.append(f"{where}: {error}")
    assert wrong == []


# ------------------------------------------------------------------ the others


def test_files_of_commands_are_there() -> None:
    checked = 0
    for where, (program, *rest) in every_command():
        file = program if "/" in program else next((w for w in rest if w.endswith(".py")), "")
        if program in ("python", ".", "pytest") or program.startswith("scripts/"):
            file = file or next((word for word in rest if "/" in word), "")
            if file and "launch" not in file:
                assert (ROOT / file).exists(), f"{where}: there is no {file}"
                checked += 1
    assert checked > 5


def test_ros2_commands_name_what_there_is() -> None:
    arguments = set(re.findall(r'^    "(\w+)": \(', LAUNCH.read_text("utf-8"), re.M))
    executables = set(re.findall(r"\b(\w+_node|agent)\b", (ROOT / "CMakeLists.txt").read_text()))
    seen = set()
    for where, taken in [*every_command(), *every_mention("ros2")]:
        match taken[:3]:
            case ["ros2", "launch", "vljepa_ros"]:
                assert taken[3] == LAUNCH.name
                given = {word.split(":=")[0] for word in taken[4:] if ":=" in word}
                assert given <= arguments, f"{where}: {given - arguments}"
            case ["ros2", "run", "vljepa_ros"]:
                assert taken[3] in executables | {"EXECUTABLE"}, where
            case ["ros2", "param", "set"]:
                spec = specs(taken[3].rsplit("/", 1)[-1])[taken[4]]
                assert spec.live, f"{where}: {spec.name} cannot change while running"
                spec.checked(yaml.safe_load(taken[5]))
            case ["ros2", "interface", "show"]:
                _, kind, name = taken[3].split("/")
                assert (ROOT / kind / f"{name}.{kind}").is_file(), where
            case _:
                continue
        seen.add(taken[1])
    assert seen == {"launch", "run", "param", "interface"}


def test_the_unit_of_systemd_and_the_agent_in_cpp_are_installed() -> None:
    unit = (ROOT / "config" / "systemd" / "vljepa.service").read_text("utf-8")
    (start,) = re.findall(r'^ExecStart=/bin/bash -c "(.+)"$', unit, re.M)
    launch = start.split("exec ")[1].split()
    assert launch[:4] == ["ros2", "launch", "vljepa_ros", LAUNCH.name]
    arguments = set(re.findall(r'^    "(\w+)": \(', LAUNCH.read_text("utf-8"), re.M))
    assert {word.split(":=")[0] for word in launch[4:]} <= arguments
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "add_executable(agent examples/agent.cpp)" in cmake
    assert re.search(r"install\(DIRECTORY [^)]*\bconfig\b[^)]*\bexamples\b", cmake)


# ------------------------------------------------------------------ programs

PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_python_compiles(block: Block) -> None:
    compile("\n".join(block.lines), block.where, "exec")


def test_the_example_of_fine_tuning_draws_what_a_training_reads(tmp_path: Path) -> None:
    program = next(block for block in PYTHON if "cell.jsonl" in block.lines[0])
    subprocess.run(
        [sys.executable, "-c", "\n".join(program.lines)], cwd=tmp_path, check=True, timeout=60
    )
    lines = read_lines(tmp_path / "cell.jsonl", "What is happening?")
    assert len(lines) == 80 and len({line.answer for line in lines}) == 6


# ------------------------------------------------------------------ parameter files


SETTINGS = [block for block in BLOCKS if any("ros__parameters" in line for line in block.lines)]


@pytest.mark.parametrize("block", SETTINGS, ids=named)
def test_parameter_files_hold_parameters_that_there_are(block: Block) -> None:
    check_parameters("\n".join(block.lines), block.where)


def test_there_are_parameter_files(tmp_path: Path) -> None:
    assert len(SETTINGS) > 2
