"""`vljepa evaluate`: the whole table for one bundle, as JSON, Markdown and plots.

Invariant: the episodes are always the same ones, by number, so that two bundles of one data
version can be compared; all figures but run times depend on bundle and data alone.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vljepa_ros import __version__
from vljepa_ros.bundle.manifest import MANIFEST, write_manifest
from vljepa_ros.bundle.spec import PARTS, load_bundle
from vljepa_ros.errors import VLJepaError, needing
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.episode import DATA_VERSION, SPLITS
from vljepa_ros.workers.processes import Processes

from . import baselines, report
from .clips import see
from .figures import targets
from .tasks import captions, classification, retrieval, streams, vqa

JSON, MARKDOWN = "results.json", "results.md"


@dataclass(frozen=True)
class Extent:
    """How much is evaluated: the first episodes of each split, and streams from `first_stream` on.

    Streams below `first_stream` are for calibration. `habits`: training episodes for baselines.
    """

    test: int = 100
    composition: int = 60
    streams: int = 12
    seconds: float = 120.0
    first_stream: int = 100
    habits: int = 200


def held_out(data: Path, extent: Extent, workers: int) -> dict[str, list[Path]]:
    """The episodes of `extent` by split, simulated now where they are missing."""
    training = store.needed(data, "train")[: extent.habits]
    wanted = {
        "test": (extent.test, 30.0, 0),
        "composition": (extent.composition, 30.0, 0),
        "stream": (extent.streams, extent.seconds, extent.first_stream),
    }
    found = {"train": training}
    for split, (count, seconds, start) in wanted.items():
        first = SPLITS[split] + start
        paths = [data / split / f"{seed:08d}.npz" for seed in range(first, first + count)]
        if not all(path.exists() for path in paths):
            with needing("train"):
                from vljepa_ros.tabletop.sim.generate import generate
            generate(
                data, split, count, seconds, start, lambda opening: Processes(opening, workers)
            )
        found[split] = paths
    return found


def evaluate(
    bundle: Path,
    data: Path,
    extent: Extent | None = None,
    workers: int = 2,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure everything about the bundle in the folder `bundle`; a JSON object.

    `data`: the folder of the episodes. Figures are dicts of `value`, `low` and `high`.
    """
    extent = extent or Extent()
    loaded = load_bundle(bundle)
    if loaded.query is None:
        raise VLJepaError(
            f"The bundle {bundle} is asked nothing, and this evaluation asks questions about a "
            "simulated table; judge it on recordings of what it is for."
        )
    made = loaded.source.get("data")
    if made is not None and made != f"tabletop-{DATA_VERSION}":
        progress(
            f"note: {loaded.model_id} was trained on {made}, judged on tabletop-{DATA_VERSION}"
        )
    episodes = held_out(data, extent, workers)
    model = Runtime(loaded, "onnxruntime-cpu", parts=PARTS)
    try:
        habits, pixels = baselines.learn(loaded.clip.frames, episodes["train"])
        progress(f"baselines learned from {len(episodes['train'])} training episodes")
        canonical = classification.Labels.canonical(model)
        strange = classification.Labels.unseen(model)
        progress(f"{len(canonical.names)} labels in {1 + len(strange)} wordings embedded")
        results: dict[str, Any] = {
            "model": _about(model),
            "extent": vars(extent),
            "splits": {},
        }
        for split in ("test", "composition"):
            clips = see(model, episodes[split])
            progress(f"{split}: {len(clips)} clips seen")
            results["splits"][split] = {
                "episodes": len(episodes[split]),
                "classification": classification.classify(
                    clips, canonical, strange, habits, pixels
                ),
                "retrieval": retrieval.retrieve(clips, canonical, pixels),
                "vqa": vqa.answer(model, clips, habits),
                "captions": captions.describe(model, clips, habits, pixels),
            }
        results["streams"] = streams.long_streams(model, episodes["stream"], habits, progress)
    finally:
        model.close()
    results = report.rounded(results)  # what is written is what is judged
    results["targets"] = report.rounded(targets.judged(results))
    return results


def _about(model: Runtime) -> dict[str, Any]:
    bundle = model.bundle
    return {
        "id": bundle.model_id,
        "source": {k: bundle.source.get(k) for k in ("seed", "data", "code")},
        "read": bundle.source.get("read"),
        "judged_on": f"tabletop-{DATA_VERSION}",
        "judged_by": f"vljepa_ros {__version__}",
        "backend": f"{model.info[0].backend} in {model.info[0].precision}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """What a bundle's manifest carries of the results: every headline figure, rounded."""
    kept: dict[str, Any] = {}
    for split, found in results["splits"].items():
        kept[split] = {
            "clips": found["classification"]["clips"],
            **{name: round(value, 3) for name, value in targets.measured(found).items()},
            "CIDEr": round(found["captions"]["bundle"]["cider"]["value"], 3),
        }
    measured = results["streams"]
    kept["streams"] = {
        "minutes": round(measured["minutes"], 1),
        "times_fewer_decodes": round(measured["fewer_decodes"]["times_fewer"]["value"], 2),
        **{name: round(figure["value"], 3) for name, figure in measured["detector"].items()},
        "CIDEr_uniform_1_hz": round(measured["uniform_1_hz"]["cider"]["value"], 3),
    }
    kept["targets"] = {one["target"]: one["reached"] for one in results["targets"]}
    return kept


def record(bundle: Path, results: dict[str, Any]) -> str:
    """Write the summary into the manifest of the bundle in the folder `bundle`.

    Changes the manifest's hash, and so the model's id: the results take the new one, which is
    returned. Weights, thresholds and the rest of the evaluation stay.
    """
    manifest = yaml.safe_load((bundle / MANIFEST).read_text())
    manifest.setdefault("evaluation", {}).update(summary(results))
    write_manifest(bundle, manifest)
    results["model"]["id"] = load_bundle(bundle).model_id
    return str(results["model"]["id"])


def write(results: dict[str, Any], out: Path) -> list[Path]:
    """Write `results.json`, `results.md` and the plots into the folder `out`."""
    from .plots import selective_decoding

    out.mkdir(parents=True, exist_ok=True)
    written = [out / report.STREAMS_PLOT]
    selective_decoding(results["streams"], written[0])
    if "comparison" in results:
        from .plots import token_comparison

        written.append(out / report.COMPARISON_PLOT)
        token_comparison(results["comparison"], written[1])
    text = json.dumps(report.rounded(results), indent=1) + "\n"
    (out / JSON).write_text(text)
    (out / MARKDOWN).write_text(report.markdown(json.loads(text)))
    return [out / MARKDOWN, out / JSON, *written]


def read_comparison(path: Path) -> dict[str, Any]:
    """The results of the comparison with a token-generating model."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VLJepaError(f"{path} is not the JSON of a comparison: {error}.") from error
    if not isinstance(found, dict):
        raise VLJepaError(f"{path} is not the JSON of a comparison: it holds no object.")
    return found
