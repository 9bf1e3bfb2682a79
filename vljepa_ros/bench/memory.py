"""`vljepa bench memory`: the moment store with many moments, beside brute force in NumPy.

The embeddings lie in clusters, as those of a robot's days do: between random ones there is
nothing to find. Each side searches in a process of its own, which then says what memory it takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from vljepa_ros.console import console, notice, print_json, print_table
from vljepa_ros.errors import VLJepaError
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import Limits, MomentStore

SECOND, EPOCH = 10**9, 1_700_000_000 * 10**9
CAMERAS = ("front", "rear", "left", "right")
CHUNK = 256  # moments that are added at once
THUMBNAIL = 10_000  # bytes
BEST = 10  # of which the recall is counted
SPREAD = 0.7  # of a cluster, against 1 between the clusters
FOLDER = typer.Option(None, help="Where to make the store for a while. Default: a new folder.")


@dataclass(frozen=True)
class Plan:
    """What is measured; moments are a second long, one after the other, on each camera in turn."""

    moments: int
    dim: int
    queries: int

    def embeddings(self) -> Iterator[np.ndarray]:
        """Unit vectors, float32 `[<= CHUNK, dim]` at a time; the same at each call."""
        rng = np.random.default_rng(1)
        centres = self._centres()
        for first in range(0, self.moments, CHUNK):
            yield self._around(centres, min(CHUNK, self.moments - first), rng)

    def asked(self) -> np.ndarray:
        """The queries, float32 `[queries, dim]`."""
        return self._around(self._centres(), self.queries, np.random.default_rng(2))

    def late(self) -> np.ndarray:
        """Embeddings of the moments that come when the store is full, as many as queries."""
        return self._around(self._centres(), self.queries, np.random.default_rng(3))

    def bounds(self) -> dict[str, dict[str, Any]]:
        """What searches are bounded by, by name: a camera of four, a quarter of the time."""
        times = {
            "after_ns": EPOCH + int(0.3 * self.moments) * SECOND,
            "before_ns": EPOCH + int(0.55 * self.moments) * SECOND,
        }
        cameras = {"cameras": CAMERAS[1:2]}
        return {"everything": {}, "camera": cameras, "time": times, "both": {**cameras, **times}}

    def _centres(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.standard_normal((max(1, self.moments // 200), self.dim), np.float32)

    def _around(self, centres: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        chosen = centres[rng.integers(0, len(centres), count)]
        vectors = chosen + SPREAD * rng.standard_normal((count, self.dim), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def memory(
    moments: int = typer.Option(100_000, min=1000, help="Moments in the store."),
    dim: int = typer.Option(1536, min=8, help="Numbers in an embedding."),
    queries: int = typer.Option(200, min=10, help="Searches of each kind."),
    thumbnails: bool = typer.Option(False, "--thumbnails", help="With pictures of 10 kB."),
    folder: Path = FOLDER,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Fill a moment store, search it, and compare with brute force in NumPy."""
    plan = Plan(moments, dim, queries)
    with tempfile.TemporaryDirectory(prefix="vljepa_bench_", dir=folder) as place:
        store = Path(place) / "store"
        notice(f"Adding {moments} moments ...")
        report: dict[str, Any] = {
            "moments": moments, "dim": dim, "thumbnails": thumbnails,
            **_fill(store, plan, THUMBNAIL if thumbnails else 0),
        }  # fmt: skip
        notice("Searching ...")
        report["store"], found = _alone(plan, store)
        notice("Searching by brute force ...")
        report["numpy"], exact = _alone(plan)
    for name, expected in exact.items():
        hits = sum(len(set(a) & set(b)) for a, b in zip(found[name], expected))
        report["store"][name][f"recall@{BEST}"] = hits / sum(len(b) for b in expected)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _fill(folder: Path, plan: Plan, thumbnail: int) -> dict[str, Any]:
    """Add everything, then some more one by one, at the limit, where each add prunes one."""

    def moment(number: int, embedding: np.ndarray) -> Moment:
        start = EPOCH + number * SECOND
        return Moment(
            "bench", CAMERAS[number % len(CAMERAS)], "What is happening?", number, start,
            start + SECOND - 1, embedding, text=f"moment {number}", confidence=0.5,
            thumbnail=picture,
        )  # fmt: skip

    picture = np.random.default_rng(4).bytes(thumbnail)
    taken, number = 0.0, 0
    with MomentStore(folder, "bench", plan.dim, Limits(plan.moments, 0)) as store:
        for embeddings in plan.embeddings():
            some = [moment(number + k, embedding) for k, embedding in enumerate(embeddings)]
            number += len(some)
            began = time.monotonic()
            store.add(some)
            taken += time.monotonic() - began
        began = time.monotonic()
    taken += time.monotonic() - began  # to bring all of it to the disk
    with MomentStore(folder, limits=Limits(plan.moments, 0)) as store:
        size, singles = store.size(), list[float]()
        for embedding in plan.late():
            one = moment(number, embedding)
            number += 1
            began = time.monotonic()
            store.add([one])
            singles.append(time.monotonic() - began)
    return {
        "moments_per_s": plan.moments / taken,
        "one_at_the_limit_ms": _percentiles(singles),
        "disk_mb": size / 1e6,
    }


def _alone(plan: Plan, *folder: Path) -> Any:
    """(report, found) of the store in `folder`, or of NumPy, in a process that does only that."""
    words = (plan.moments, plan.dim, plan.queries, *folder)
    command = [sys.executable, "-m", "vljepa_ros.bench.memory", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise VLJepaError("The search ended early; what it said is above.")
    return json.loads(done.stdout)


def _main(moments: str, dim: str, queries: str, *folder: str) -> None:
    plan = Plan(int(moments), int(dim), int(queries))
    print(json.dumps(_search_store(Path(*folder), plan) if folder else _search_numpy(plan)))


def _search_store(folder: Path, plan: Plan) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """Times and memory, and which moments were found."""
    began = time.monotonic()
    with MomentStore(folder) as store:
        report: dict[str, Any] = {"open_s": time.monotonic() - began}
        found = dict[str, list[list[int]]]()
        for name, bounds in plan.bounds().items():
            durations = list[float]()
            found[name] = []
            for query in plan.asked():
                began = time.monotonic()
                best = store.search(query, **bounds, limit=BEST)
                durations.append(time.monotonic() - began)
                found[name].append([one.moment.segment_id for one in best])
            report[name] = _percentiles(durations)
        report["memory_mb"] = _memory()
    return report, found


def _search_numpy(plan: Plan) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """The same, over one matrix in memory, of what is left after the oldest were pruned."""
    embeddings = np.concatenate([*plan.embeddings(), plan.late()])
    numbers = np.arange(len(embeddings))
    starts, kept = EPOCH + numbers * SECOND, numbers >= plan.queries
    report, found = dict[str, Any](), dict[str, list[list[int]]]()
    for name, bounds in plan.bounds().items():
        durations = list[float]()
        found[name] = []
        for query in plan.asked():
            began = time.monotonic()
            scores = embeddings @ query
            allowed = kept.copy()
            if "cameras" in bounds:
                allowed &= numbers % len(CAMERAS) == 1
            if "after_ns" in bounds:
                allowed &= starts + SECOND - 1 >= bounds["after_ns"]
                allowed &= starts <= bounds["before_ns"]
            scores[~allowed] = -2
            best = np.argpartition(-scores, BEST)[:BEST]
            best = best[np.argsort(-scores[best])]
            durations.append(time.monotonic() - began)
            found[name].append([int(number) for number in best])
        report[name] = _percentiles(durations)
    report["memory_mb"] = _memory()
    return report, found


def _percentiles(durations: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{p}_ms": float(np.percentile(durations, p)) * 1e3 for p in (50, 90, 99)}


def _memory() -> dict[str, float]:
    """Resident megabytes of this process: all, its own, and pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident": "VmRSS", "own": "RssAnon", "of_files": "RssFile"}
    return {name: int(lines[field].split()[0]) / 1024 for name, field in names.items()}


def _print(report: dict[str, Any]) -> None:
    headings = ("search", "p50 (ms)", "p90", "p99", f"recall@{BEST}", "NumPy p50", "p99")
    rows = []
    ours, theirs = report["store"], report["numpy"]
    for name in ("everything", "camera", "time", "both"):
        a, b = ours[name], theirs[name]
        rows.append([
            name, *(f"{a[f'p{p}_ms']:.1f}" for p in (50, 90, 99)), f"{a[f'recall@{BEST}']:.3f}",
            *(f"{b[f'p{p}_ms']:.1f}" for p in (50, 99)),
        ])  # fmt: skip
    title = f"{report['moments']} moments of {report['dim']} numbers"
    print_table(headings, rows, right=headings[1:], title=title)
    one, pictures = report["one_at_the_limit_ms"], "with" if report["thumbnails"] else "without"
    console.print(
        f"Adding: {report['moments_per_s']:.0f} moments/s in batches of {CHUNK}, {pictures} "
        f"thumbnails; one alone at the limit {one['p50_ms']:.1f} ms (p50), "
        f"{one['p99_ms']:.1f} ms (p99).\n"
        f"On the disk: {report['disk_mb']:.0f} MB. Opened in {ours['open_s']:.2f} s."
    )
    for who, side in (("the store", ours), ("NumPy", theirs)):
        used = side["memory_mb"]
        console.print(
            f"Resident, {who}: {used['resident']:.0f} MB, of which {used['own']:.0f} MB its own "
            f"and {used['of_files']:.0f} MB pages of files."
        )


if __name__ == "__main__":
    _main(*sys.argv[1:])
