"""`vljepa recall`: moments by their meaning, from a running robot, a store on disk, or a fleet.

Invariant: nothing is changed; a store is opened for reading, while a robot may be writing it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import typer

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.console import notice, print_json, print_table
from vljepa_ros.errors import VLJepaError
from vljepa_ros.memory.fleet import COLLECTION, FleetStore
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import Found, MomentStore
from vljepa_ros.stamps import clock

from ..models import open_model
from ..paths import PICTURES, checked_output
from ..records import moment_record
from ..times import parse_stamp

STORE = typer.Option(None, help="The folder of the moments. Default: ask the running memory node.")
CAMERA = typer.Option(None, help="Only this camera; again for more.")
SHEET = typer.Option(None, help=f"Also draw the moments into this picture ({' '.join(PICTURES)}).")
API_KEY = "QDRANT_API_KEY"  # environment variable


def recall(
    text: str = typer.Argument(..., help='What to look for, e.g. "the red cube falls".'),
    store: Optional[Path] = STORE,
    bundle: str = typer.Option(DEFAULT, help="The bundle that the moments were made with."),
    backend: str = typer.Option("auto", help="What runs its Y-encoder."),
    camera: list[str] = CAMERA,
    after: str = typer.Option("", help="Not over before, e.g. 14:30 or 2026-05-01T14:30."),
    before: str = typer.Option("", help="Begun by, e.g. 14:30; also seconds since 1970."),
    limit: int = typer.Option(5, min=1, max=100, help="At most so many moments."),
    sheet: Optional[Path] = SHEET,
    url: str = typer.Option("", help="URL of the fleet's Qdrant server, to ask it instead."),
    collection: str = typer.Option(COLLECTION, help="The collection on that server."),
    fleet: bool = typer.Option(False, "--fleet", help="Have the memory node ask its server."),
    namespace: str = typer.Option("", help="Namespace of the memory node."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Find the moments that fit a text best: the running robot's, a store's, or a fleet's."""
    from vljepa_ros.perception.texts import checked_text

    if sheet is not None:
        checked_output(sheet, PICTURES, "a picture")
    wanted = checked_text("text", text)
    bounds = (parse_stamp("--after", after), parse_stamp("--before", before))
    if bounds[1] and bounds[0] > bounds[1]:
        raise VLJepaError("--before is earlier than --after; nothing can lie between.")
    if (store is not None) + bool(url) + fleet > 1:
        raise VLJepaError("Give one of --store, --url and --fleet.")
    cameras = list(dict.fromkeys(camera or ()))
    if store is not None or url:
        asked = _Text(wanted, bundle, backend)
        enough = asked.bundle.thresholds.watch
        if store is not None:
            found = _in_store(store, asked, cameras, bounds, limit)
        else:
            found = _in_fleet(url, collection, asked, cameras, bounds, limit)
    else:
        from ..live.calls import recall_live

        found, enough = recall_live(wanted, cameras, *bounds, limit, fleet, namespace)
    if sheet is not None:
        from .sheet import write_sheet

        write_sheet(sheet, wanted, found, enough)
    if as_json:
        print_json(
            [
                moment_record("recall", one.moment, score=one.score, weak=one.score < enough)
                for one in found
            ]
        )
    elif found:
        _print(found, enough)
    else:
        notice("Nothing that fits has been stored.")


class _Text:
    """A text that is to be embedded by a bundle."""

    def __init__(self, text: str, bundle: str, backend: str) -> None:
        self.text, self.bundle, self.backend = text, load_bundle(bundle), backend

    def embedding(self, model_id: str, where: str) -> np.ndarray:
        """float32 `[E]`; VLJepaError where the moments are of another model."""
        own = self.bundle.model_id
        if model_id != own:
            raise VLJepaError(
                f"{where} holds moments of {model_id}, and the bundle {self.bundle.path} is {own}; "
                "give the one that they were made with (--bundle)."
            )
        model = open_model(self.bundle, self.backend, ("y_encoder",))
        try:
            return model.embed_text([self.text])[0]
        finally:
            model.close()


def _in_store(
    folder: Path, text: _Text, cameras: Sequence[str], bounds: tuple[int, int], limit: int
) -> list[Found]:
    store = MomentStore(folder, read_only=True)
    try:
        known = store.cameras()
        for camera in cameras:
            if camera not in known:
                there = f"there are: {', '.join(sorted(known))}" if known else "it is empty"
                raise VLJepaError(f"There is no camera '{camera}' in {folder}; {there}.")
        embedding = text.embedding(store.model_id, str(folder))
        return store.search(embedding, cameras, *bounds, limit)
    finally:
        store.close()


def _in_fleet(
    url: str,
    collection: str,
    text: _Text,
    cameras: Sequence[str],
    bounds: tuple[int, int],
    limit: int,
) -> list[Found]:
    bundle, key = text.bundle, os.environ.get(API_KEY, "")
    fleet = FleetStore(url, bundle.model_id, bundle.embedding_dim, collection, key)
    return fleet.search(text.embedding(bundle.model_id, url), cameras, *bounds, limit)


def _print(found: Sequence[Found], enough: float) -> None:
    """`enough`: the score below which a match is weak."""
    weak = any(one.score < enough for one in found)
    known = any(one.moment.familiarity >= 0 for one in found)
    episodes = any(one.moment.episode >= 0 for one in found)
    dated = any(one.moment.video_start_ns > 0 for one in found)  # else the time is the position
    rows = []
    for one in found:
        moment = one.moment
        seconds = (moment.end_ns - moment.start_ns) / 1e9
        rows.append([
            clock(moment.start_ns), moment.camera, f"{seconds:.1f}", f"{one.score:.2f}",
            *(["weak" if one.score < enough else ""] if weak else []),
            *([f"{moment.familiarity:.2f}"] if known else []),
            *([str(moment.episode) if moment.episode >= 0 else ""] if episodes else []),
            *([_place(moment)] if dated else []),
            _told(moment),
        ])  # fmt: skip
    more = [
        *(["familiar"] if known else []),
        *(["episode"] if episodes else []),
        *(["position"] if dated else []),
    ]
    match = ["match"] if weak else []
    print_table(
        ("time", "camera", "s", "score", *match, *more, "text"), rows, right=("s", "score", *more)
    )


def _place(moment: Moment) -> str:
    """Where it lies in its video."""
    return "" if moment.position is None else f"{moment.position:.3f} s"


def _told(moment: Moment) -> str:
    """What was said, and, where it is something else, what was to be done."""
    if moment.task in ("", moment.text):
        return moment.text
    return f"{moment.text} (task: {moment.task})".strip()
