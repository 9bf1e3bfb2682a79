"""The lines of `vljepa train --data`: any text, any line ends, any damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vljepa_ros.training.lines import RecordingsError, read_lines

QUERY = "What is happening?"
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
SAID = st.text().filter(lambda text: text.split())


def row(**fields: Any) -> dict[str, Any]:
    return {"video": "a.mp4", "start": 0, "end": 1, "answer": "it moves", **fields}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").touch()
    return tmp_path / "lines.jsonl"


def refused(file: Path) -> dict[int, str]:
    """What is said, by line."""
    with pytest.raises(RecordingsError) as refusal:
        read_lines(file, QUERY)
    told = [line.removeprefix(f"{file}:").split(": ", 1) for line in str(refusal.value).split("\n")]
    return {int(number): text for number, text in told}


@given(st.lists(SAID, min_size=1, max_size=4), ENDS, st.booleans(), st.booleans(), st.booleans())
@example(["a\u2028b", "c\u0085d", "e\u2029\x1c\x0b\x0c"], "\n", False, False, True)
@example(["e"], "\r\n", True, True, True)
@SETTINGS
def test_any_answer_in_any_file_of_lines(
    file: Path, answers: list[str], end: str, mark: bool, escaped: bool, ended: bool
) -> None:
    rows = [json.dumps(row(answer=text), ensure_ascii=escaped) for text in answers]
    text = f"{end}{end}".join(rows) + end * ended
    file.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    lines = read_lines(file, QUERY)
    assert [line.answer for line in lines] == [" ".join(text.split()) for text in answers]
    assert [line.number for line in lines] == [1 + 2 * k for k in range(len(answers))]


BAD = [
    "{", "[1]", "nonsense", "[" * 100_000, '"' + "\\ud800" * 3 + '"',
    *(json.dumps(row(**fields)) for fields in (
        {"video": "absent\u2028.mp4"}, {"video": "~nobody-of-that-name/a.mp4"}, {"end": 10**400},
        {"video": "a" * 300}, {"video": "a\0b"}, {"answer": "\ud800"}, {"start": float("nan")},
        {"start": None}, {"end": True}, {"answer": 3}, {"answer": "\u2028"}, {"x\ny": 1},
        {"end": 0}, {"end": float("inf")}, {"query": "\t"}, {"end": 1e300},
    )),
    json.dumps(row()).replace("1", "9" * 5000),
]  # fmt: skip


@given(st.lists(st.sampled_from([json.dumps(row()), *BAD]), min_size=1), ENDS)
@example(BAD, "\n")
@SETTINGS
def test_every_bad_line_is_named_and_no_other(file: Path, rows: list[str], end: str) -> None:
    file.write_bytes(end.join(rows).encode())
    bad = [number for number, text in enumerate(rows, 1) if text in BAD]
    if bad:
        said = refused(file)
        assert list(said) == bad
        assert all(text.endswith(".") for text in said.values())
    else:
        assert len(read_lines(file, QUERY)) == len(rows)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just("a.mp4"),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip
KEYS = st.sampled_from(["video", "bag", "topic", "start", "end", "query", "answer"])
OBJECTS = st.dictionaries(KEYS, VALUES).map(lambda values: json.dumps(values).encode())


@given(st.lists(st.one_of(OBJECTS, st.binary()), max_size=4))
@SETTINGS
def test_any_bytes_give_lines_or_sentences(file: Path, rows: list[bytes]) -> None:
    file.write_bytes(b"\n".join(rows))
    said = [str(file)]
    try:
        read_lines(file, QUERY)
    except RecordingsError as error:
        said = str(error).split("\n")
    assert all(text.startswith(str(file)) for text in said)


def test_a_place_in_a_row_is_its_column(file: Path) -> None:
    file.write_text(json.dumps(row()) + '\n{"video": "a.mp4", start: 0}')
    assert "at column 20" in refused(file)[2]
