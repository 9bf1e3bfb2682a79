"""What the commands print with: tables that are whole at any width."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.text import Text

from vljepa_ros import console
from vljepa_ros.console import Output, print_table, table_lines

HEADINGS = ("time", "camera", "score", "what was said")
ROWS = [
    ("2026-11-30 05:58:31.250", "front", "0.67", "a hand covers the blue cube, and takes it away"),
    ("2026-11-30 05:58:33.500", "rear_left", "10.07", "静かな部屋"),
    ("2026-11-30 05:58:35.000", "front", "", ""),
]


def words(lines: list[str]) -> list[str]:
    return sorted(word for line in lines for word in line.split())


def test_a_file_gets_lines_of_any_length() -> None:
    lines = table_lines(HEADINGS, ROWS, ("score",))
    assert lines == [
        "time                     camera     score  what was said",
        "2026-11-30 05:58:31.250  front       0.67  a hand covers the blue cube, and takes it away",
        "2026-11-30 05:58:33.500  rear_left  10.07  静かな部屋",
        "2026-11-30 05:58:35.000  front",
    ]


@pytest.mark.parametrize("room", range(1, 100))
def test_nothing_is_cut_at_any_width(room: int) -> None:
    lines = table_lines(HEADINGS, ROWS, ("score",), room)
    cells = [word for row in ROWS for cell in row for word in cell.split()]
    assert set(cells) <= set(words(lines))
    if room >= 44:  # the columns fit side by side
        assert words(lines) == sorted(cells + [w for h in HEADINGS for w in h.split()])
    longest = max(map(cell_len, cells))
    assert max(map(cell_len, lines)) <= max(room, len("what was said") + 2 + longest)


def test_columns_that_want_little_get_it_first() -> None:
    lines = table_lines(HEADINGS, ROWS, ("score",), 70)
    assert lines[1].startswith("2026-11-30 05:58:31.250  front       0.67  a hand covers")
    assert lines[2].split() == ["cube,", "and", "takes", "it", "away"]


def test_a_row_becomes_lines_where_there_is_no_room() -> None:
    lines = table_lines(HEADINGS, ROWS, ("score",), 40)
    assert lines[:6] == [
        "time           2026-11-30 05:58:31.250",
        "camera         front",
        "score          0.67",
        "what was said  a hand covers the blue",
        "               cube, and takes it away",
        "",
    ]
    assert lines[-2:] == ["time           2026-11-30 05:58:35.000", "camera         front"]


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_end_between_words_on_a_terminal_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output()
    out.file, out.width = io.StringIO(), 20
    monkeypatch.setattr(out, "_force_terminal", terminal)
    monkeypatch.setattr(console, "console", out)
    path = "/a/path/that/is/longer/than/the/terminal"
    sentence = f"  The bundle {path} is not [bold]there[/]; name another one of those that are."
    out.print(sentence)
    print_table(("folder", "moments"), [("a b c d e f g h i", "12")], right=("moments",))
    shown = out.file.getvalue().splitlines()
    if terminal:
        assert shown[:5] == [
            "  The bundle",
            f"  {path}",
            "  is not",
            "  [bold]there[/];",
            "  name another one",
        ]
        assert max(len(line) for line in shown if path not in line) <= 20
    else:
        assert shown[0] == sentence
        assert shown[2] == "a b c d e f g h i       12"


def test_what_is_wrapped_can_be_set_in_below_its_text() -> None:
    out = Output(force_terminal=True, width=30, color_system=None)
    out.file = io.StringIO()
    state = Text("  works ", "green")
    out.print(state, " name  two of the words, then/a/word/longer/than/the/room and more", hang=15)
    out.print("label          /one/that/is/longer/than/what/is/left", hang=15)
    assert out.file.getvalue().splitlines() == [
        "  works   name  two of the",
        "               words,",
        "               then/a/word/longer/than/the/room",
        "               and more",
        "label          /one/that/is/longer/than/what/is/left",
    ]
