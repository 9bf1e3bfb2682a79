"""The pages of the docs as a reader takes them: their blocks of code, and the commands in these.

A block is fenced, or indented by four spaces or more. Where a line of it begins with `$ `, such
lines are commands and the others are what they print; else every line that begins with the name of
a program is a command. `<!-- not run: REASON -->` before a block says why a test cannot run it.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REASONS = ("long", "network", "port", "GPU", "robot", "ROS distribution", "Docker daemon")
MARK = re.compile(r"<!-- not run: (.+) -->")
PROGRAM = re.compile(
    r"(\w+=\S+ )*(sudo )?(vljepa|ros2|rviz2|colcon|rosdep|pip|python3?|git|cd|npm|pytest|export|"
    r"docker|printf|cp|ray|systemctl|journalctl|\.|scripts/\w+)( |$)"
)
SHELLS = ("", "sh", "bash", "console")  # languages of blocks that may hold commands


@dataclass(frozen=True)
class Block:
    """A block of code. `mark`: why its commands are not run, empty where they are."""

    page: Path
    line: int
    language: str
    mark: str
    lines: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[Command]:
        """Its commands; none where it is a program, settings or a drawing."""
        if self.language not in SHELLS:
            return []
        prompt = any(line.startswith("$ ") for line in self.lines)
        found: list[tuple[str, list[str]]] = []
        for line in self.lines:
            if line.startswith("$ ") or (not prompt and PROGRAM.match(line)):
                found.append((line.removeprefix("$ "), []))
            elif prompt and found:
                found[-1][1].append(line)
        return [Command(self, text, tuple(lines) if prompt else None) for text, lines in found]


@dataclass(frozen=True)
class Command:
    """A command line. `shown`: what the page says that it prints; None: the page says nothing."""

    block: Block
    text: str
    shown: tuple[str, ...] | None

    @property
    def bare(self) -> str:
        """Without its comment, and without the place of what a reader adds."""
        return re.split(r"\s+#", self.text)[0].replace(" …", "")


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in its order."""
    lines = page.read_text("utf-8").splitlines()
    number, mark = 0, ""
    while number < len(lines):
        line, begin = lines[number], number + 1
        number += 1
        if fence := re.match(r"( *)```(\w*)$", line):
            content = []
            while lines[number].strip() != "```":
                content.append(lines[number])
                number += 1
            number += 1
            yield _block(page, begin, fence[2], mark, content)
        elif line.startswith("    ") and not lines[number - 2].strip():
            content = [line]
            while number < len(lines) and (
                lines[number].startswith("    ") or not lines[number].strip()
            ):
                content.append(lines[number])
                number += 1
            yield _block(page, begin, "", mark, content)
        elif not line.strip():
            continue
        elif found := MARK.fullmatch(line.strip()):
            mark = found[1]
            continue
        mark = ""


def _block(page: Path, line: int, language: str, mark: str, content: list[str]) -> Block:
    text = textwrap.dedent("\n".join(content)).strip("\n")
    return Block(page, line, language, mark, tuple(text.split("\n")))


def prose(page: Path) -> str:
    """A page without its blocks."""
    lines = page.read_text("utf-8").splitlines()
    for block in blocks(page):
        fence = block.line - 1 if lines[block.line - 1].lstrip().startswith("```") else None
        end = block.line - 1 + len(block.lines) + (2 if fence is not None else 0)
        lines[block.line - 1 : end] = [""] * (end - block.line + 1)
    return "\n".join(lines)


def words(command: str) -> Iterator[list[str]]:
    """The words of each command of a line: it may hold several."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    taken: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            while taken and (re.fullmatch(r"\w+=.*", taken[0]) or taken[0] == "sudo"):
                taken = taken[1:]
            if taken:
                yield taken
            taken = []
        else:
            taken.append(word)
