"""`vljepa bench engines`: a bundle's graphs on every backend, beside torch and saccadic.

Invariant: whatever is compared was measured in the same run, in turns that are short beside the
noise of a machine, so that the noise hits all alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.console import console, print_json, print_table
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.backends import BACKENDS, backends
from vljepa_ros.inference.engine import PRECISIONS

from .contender import ANEW, STEP
from .contenders import Bench, EngineContender
from .machine import describe, device_memory_of, machine

CAMERAS, QUERIES = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8, 16, 32)
PEERS = {"torch": "torch, eager", "compile": "torch.compile", "saccadic": "saccadic"}


@dataclass
class Row:
    """A contender: its process, what it said of itself, and its durations in seconds by task."""

    name: str
    process: Child
    said: dict[str, Any] = field(default_factory=dict)
    device_mb: float | None = None
    durations: dict[str, list[float]] = field(default_factory=dict)


def engines(
    bundle: str = typer.Option("tabletop", help="Model bundle."),
    backend: str = typer.Option("", help="Backends, comma-separated; empty: all that run here."),
    precision: str = typer.Option("", help="Precisions, comma-separated; empty: all there are."),
    threads: int = typer.Option(0, help="Threads per engine on the CPU; 0: the backend's choice."),
    steps: int = typer.Option(200, min=10, help="Timed steps of each graph and contender."),
    rounds: int = typer.Option(10, min=1, help="Turns in which these steps are taken."),
    peers: bool = typer.Option(True, help="Beside them: torch, torch.compile, saccadic."),
    grow: bool = typer.Option(True, help="Also with 1 to 8 cameras and 1 to 32 queries."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Each graph of a bundle on every backend and precision, beside torch: latency and memory."""
    chosen = load_bundle(bundle)
    asked, refused = _wanted(_names(backend, BACKENDS, "backend"),
                             _names(precision, PRECISIONS, "precision"))  # fmt: skip
    if peers:
        asked |= {name: {"kind": kind} for kind, name in PEERS.items()}
    with tempfile.TemporaryDirectory(prefix="vljepa_bench_") as folder, progress() as bar:
        answers = Path(folder) / "answers.npz"
        base = EngineContender(chosen, "onnxruntime-cpu", "fp32", threads, lambda *_: None)
        np.savez(answers, **Bench(base, chosen).answers())  # type: ignore[arg-type]
        base.close()
        common = {"bundle": str(chosen.path), "threads": threads, "answers": str(answers)}
        with _opened(asked, common, refused, bar) as rows:
            _measure(rows, max(1, steps // rounds), rounds, bar)
            growth = {
                row.name: _growth(row, max(4, steps // rounds // 2), rounds, bar)
                for row in rows
                if grow and row.name.endswith(" auto") and STEP in row.said["tasks"]
            }
    report = {
        "model_id": chosen.model_id, "machine": machine(), "threads": threads,
        "engines": {row.name: _figures(row, rows) for row in rows},
        "growth": growth, "not_measured": refused,
    }  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _print(report)


def progress() -> Progress:
    """A bar on stderr that leaves nothing behind."""
    return Progress(console=Console(stderr=True), transient=True)


def _wanted(
    names: list[str], precisions: list[str]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """What to open by its name in the tables, and why a backend is left out."""
    asked, refused = {}, {}
    for found in backends():
        if names and found.backend not in names:
            continue
        if not found.available:
            refused[found.backend] = f"{found.reason}; {found.fix}."
            continue
        for precision in precisions or PRECISIONS:
            asked[f"{found.backend} {precision}"] = {
                "kind": "engines", "backend": found.backend, "precision": precision
            }  # fmt: skip
    return asked, refused


def _names(text: str, known: tuple[str, ...], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise VLJepaError(f"Unknown {what} '{name}'; use some of {', '.join(known)}.")
    return names


class Child:
    """A contender's process."""

    def __init__(self, name: str, words: dict[str, Any]) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vljepa_ros.bench.contenders", json.dumps(words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def answer(self) -> Any:
        """The next thing that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise VLJepaError(f"'{self._name}' ended in the benchmark; its reason is above.")
        return json.loads(line)

    def time(self, task: str, steps: int, cameras: int = 1, queries: int = 1) -> list[float]:
        """Seconds of each step."""
        words = {"task": task, "steps": steps, "cameras": cameras, "queries": queries}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        found = self.answer()
        if isinstance(found, dict):
            raise VLJepaError(f"'{self._name}' cannot run '{task}': {found['refused']}")
        return found  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def _opened(
    asked: dict[str, dict[str, str]], common: dict[str, Any], refused: dict[str, str],
    bar: Progress,
) -> Iterator[list[Row]]:  # fmt: skip
    """One process each, opened one after the other; `refused` gets those that cannot run."""
    rows, children = list[Row](), list[Child]()
    opening = bar.add_task("opening", total=len(asked))
    try:
        for name, words in asked.items():
            child = Child(name, {**common, **words})
            children.append(child)
            said = child.answer()
            while "building" in said:
                bar.update(opening, description=f"{name}: {said['building']} {said['done']:.0%}")
                said = child.answer()
            if "refused" in said:
                refused[name] = said["refused"]
            else:
                rows.append(Row(name, child, said, device_memory_of(child.pid)))
            bar.update(opening, advance=1, description="opening")
        bar.remove_task(opening)
        if not rows:
            raise VLJepaError("Nothing could be measured: " + " ".join(refused.values()))
        yield rows
    finally:
        for child in children:
            child.kill()


def _measure(rows: list[Row], steps: int, rounds: int, bar: Progress) -> None:
    """Take turns; the first round, in which a compiler compiles, is not counted."""
    turns = bar.add_task("measuring", total=rounds + 1)
    for turn in range(rounds + 1):
        for k in range(len(rows)):
            row = rows[(k + turn) % len(rows)]  # nobody always comes after the same
            for task in row.said["tasks"]:
                found = row.process.time(task, steps)
                if turn:
                    row.durations.setdefault(task, []).extend(found)
        bar.advance(turns)
    bar.remove_task(turns)


def _growth(row: Row, steps: int, rounds: int, bar: Progress) -> dict[str, dict[str, float]]:
    """Median milliseconds of a step by cameras, and of a step and the predictor by queries."""
    most = row.said["most"]
    asked = [n for n in QUERIES if n <= most.get("Q", n)] if most.get("Q") != 1 else []
    wanted = [
        *(("cameras", STEP, n, 1) for n in CAMERAS if n <= most.get("B", n)),
        *(("queries", STEP, 1, n) for n in asked),
        *(("queries, predictor", "predictor", 1, n) for n in asked),
    ]
    durations: dict[tuple[str, int], list[float]] = {}
    turns = bar.add_task("cameras and queries", total=rounds)
    for _ in range(rounds):
        for what, task, cameras, queries in wanted:
            found = row.process.time(task, steps, cameras, queries)
            durations.setdefault((what, max(cameras, queries)), []).extend(found)
        bar.advance(turns)
    bar.remove_task(turns)
    table: dict[str, dict[str, float]] = {}
    for (what, size), found in durations.items():
        table.setdefault(what, {})[str(size)] = float(np.median(found)) * 1e3
    return table


def _figures(row: Row, rows: list[Row]) -> dict[str, Any]:
    """What is said of one contender, with ratios to the peers' medians."""
    tasks = {}
    for task, durations in row.durations.items():
        p50, p90, p99 = np.percentile(durations, (50, 90, 99)) * 1e3
        ratios = {
            peer.name: float(np.median(peer.durations[task])) * 1e3 / p50
            for peer in rows
            if peer.name in PEERS.values() and task in peer.durations
        }
        if task == STEP and ANEW in row.durations:
            ratios[ANEW] = float(np.median(row.durations[ANEW])) * 1e3 / p50
        tasks[task] = {
            "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99),
            "per_second": len(durations) / sum(durations), "steps": len(durations),
            "cosine": row.said["cosine"].get(task), "times_faster_than": ratios,
        }  # fmt: skip
    said = row.said
    return {
        "runs": said["parts"], "notes": said["notes"], "resident_mb": said["resident_mb"],
        "own_mb": said["own_mb"], "device_mb": row.device_mb, "tasks": tasks,
    }  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    rows = report["engines"]
    shown = {**{name: name for name in PEERS.values() if name in rows}, ANEW: "whole clip"}
    for task in dict.fromkeys(task for row in rows.values() for task in row["tasks"]):
        known = {peer for row in rows.values() if task in row["tasks"]
                 for peer in row["tasks"][task]["times_faster_than"]}  # fmt: skip
        peers = [peer for peer in shown if peer in known]
        headings = ("contender", "runs in", "p50 (ms)", "p90", "p99", "per s", "cosine")
        numbers = (*headings[2:], *(f"× {shown[peer]}" for peer in peers))
        cells = []
        for name, row in rows.items():
            if task not in row["tasks"]:
                continue
            found = row["tasks"][task]
            parts = dict.fromkeys(row["runs"][p.split(",")[0]] for p in task.split(" + "))
            faster, cosine = found["times_faster_than"], found["cosine"]
            cells.append([
                name, " + ".join(parts), *(f"{found[p]:.2f}" for p in ("p50_ms", "p90_ms",
                "p99_ms")), f"{found['per_second']:.0f}",
                "" if cosine is None else f"{cosine:.5f}",
                *(f"{faster[peer]:.2f}" if peer in faster else "" for peer in peers),
            ])  # fmt: skip
        print_table((*headings[:2], *numbers), cells, right=numbers, title=task)
        console.print()
    _print_memory(rows)
    for name, growth in report["growth"].items():
        _print_growth(name, growth)
    console.print(f"{report['model_id']} on {describe(report['machine'])}.")
    console.print(
        "One clip and one query a step, frames as uint8 pictures of which one is new, the query "
        "without padding where the graph can do without; the same for all. ×: how many times "
        "faster than a peer. Cosine: the least to the base graphs, in fp32 on the CPU. Where a "
        "bundle encodes its clips in chunks, a step encodes the newest one, as in a stream that "
        f"runs, and '{ANEW}' encodes all."
    )
    for name, reason in report["not_measured"].items():
        console.print(f"{name}: not measured. {reason}")
    for name, row in rows.items():
        for note in row["notes"]:
            console.print(f"{name}: {note}")


def _print_memory(rows: dict[str, Any]) -> None:
    numbers = ("process", "of that the networks", "on the device")
    cells = []
    for name, row in rows.items():
        device = "" if row["device_mb"] is None else f"{row['device_mb']:.0f}"
        cells.append((name, f"{row['resident_mb']:.0f}", f"{row['own_mb']:.0f}", device))
    print_table(("contender", *numbers), cells, right=numbers, title="Memory (MB)")
    console.print()


def _print_growth(name: str, growth: dict[str, dict[str, float]]) -> None:
    for what, sizes in growth.items():
        one = sizes["1"]
        each = what == "cameras"
        headings = (what.split(",")[0], "step (ms)", "each (ms)", "each, of one alone",
                    "step, of one")  # fmt: skip
        cells = []
        for size, ms in sizes.items():
            share = ms / int(size)
            cells.append((size, f"{ms:.2f}", f"{share:.2f}", f"{share / one:.3f}" if each else "",
                          f"{ms / one:.2f}"))  # fmt: skip
        print_table(headings, cells, right=headings, title=f"{what}: {name}")
        console.print()
