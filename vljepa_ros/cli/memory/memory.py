"""`vljepa memory`: look into a moment store, pin moments, push them to the fleet's server.

Invariant: looking and pushing open the store for reading only, so a robot may go on writing it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from vljepa_ros.console import console, notice, print_json, print_table
from vljepa_ros.errors import StoreError, counted
from vljepa_ros.memory.store import Limits, MomentStore, default_store
from vljepa_ros.stamps import clock

from ..records import moment_record, record
from ..usage import Group

app = typer.Typer(
    cls=Group,
    help="Look into a moment store, pin moments, push them to a Qdrant server.",
    no_args_is_help=True,
    add_completion=False,
)
STORE = typer.Option(None, help="The folder of the moments. Default: the robot's own.")
NAMESPACE = typer.Option(
    None, help="Of the memory node that runs in this namespace; / where it is in none."
)  # fmt: skip
CAMERA = typer.Option(None, help="Only moments of this camera; again for more.")
IDS = typer.Argument(..., help="Ids of moments, as `vljepa memory list` shows them.")


@app.command()
def show(
    store: Path = STORE,
    namespace: str = NAMESPACE,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print what the store holds: how many moments, of which model, cameras and times."""
    with MomentStore(_folder(store, namespace), read_only=True) as opened:
        first, last = opened.span_ns()
        count = len(opened)
        facts = record(
            "memory show", folder=str(opened.folder), model_id=opened.model_id,
            embedding_dim=opened.dim, start=first if count else None, end=last if count else None,
            moments=count, pinned_moments=opened.pinned, cameras=opened.cameras(),
            megabytes=opened.size() / 1e6,
        )  # fmt: skip
    if as_json:
        print_json(facts)
        return
    cameras = ", ".join(f"{name} ({count})" for name, count in facts["cameras"].items())
    for name, value in (
        ("folder", facts["folder"]),
        ("model", f"{facts['model_id']}, {facts['embedding_dim']} numbers"),
        ("moments", f"{count}, {facts['pinned_moments']} of them pinned"),
        ("size", f"{facts['megabytes']:.1f} MB"),
        ("cameras", cameras or "none"),
        ("times", f"{clock(first)} to {clock(last)}" if count else "none"),
    ):
        console.print(f"{name:<9}{value}")


@app.command("list")
def list_(
    store: Path = STORE,
    namespace: str = NAMESPACE,
    camera: list[str] = CAMERA,
    limit: int = typer.Option(20, min=1, help="How many."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print the newest moments."""
    with MomentStore(_folder(store, namespace), read_only=True) as opened:
        moments = opened.newest(limit, tuple(camera or ()))
    if as_json:
        print_json([moment_record("memory list", one) for one in moments])
    elif moments:
        cells = [
            (clock(m.start_ns), f"{(m.end_ns - m.start_ns) / 1e9:.1f}", m.camera, m.text,
             "pinned" if m.pinned else "", m.id)
            for m in moments
        ]  # fmt: skip
        print_table(("time", "s", "camera", "text", "pinned", "id"), cells, right=("s",))
    else:
        notice("There are no moments.")


@app.command()
def pin(ids: list[str] = IDS, store: Path = STORE, namespace: str = NAMESPACE) -> None:
    """Keep moments for good. While a robot writes the store, ask its node: --namespace."""
    _pin(ids, store, namespace, True)


@app.command()
def unpin(ids: list[str] = IDS, store: Path = STORE, namespace: str = NAMESPACE) -> None:
    """Let moments go when their time comes."""
    _pin(ids, store, namespace, False)


def _folder(store: Path | None, namespace: str | None) -> Path:
    """The store that is meant: a folder, a running node's, or the robot's own."""
    if namespace is None:
        return store or default_store()
    if store is not None:
        raise StoreError("Give one of --store and --namespace.")
    from ..live.calls import store_live

    return store_live(namespace)


def _pin(ids: list[str], store: Path | None, namespace: str | None, pinned: bool) -> None:
    if namespace is not None and store is None:
        from ..live.calls import pin_live

        pin_live(ids, pinned, namespace)
        return
    with MomentStore(_folder(store, namespace), limits=Limits(0, 0)) as opened:
        unknown = [one for one in ids if not opened.pin(one, pinned)]
        if unknown:
            raise StoreError(
                f"There is no moment {', '.join(unknown)} in {opened.folder}; the others are done."
            )


@app.command()
def push(
    url: str = typer.Option(..., help="Address of the Qdrant server, e.g. http://fleet:6333."),
    store: Path = STORE,
    namespace: str = NAMESPACE,
    collection: str = typer.Option("vljepa", help="Collection on the server."),
    api_key_env: str = typer.Option("QDRANT_API_KEY", help="Environment variable with the key."),
) -> None:
    """Copy what is new or has changed to a Qdrant server; again after an error: the rest."""
    from vljepa_ros.memory import fleet

    with ExitStack() as stack:
        opened = stack.enter_context(MomentStore(_folder(store, namespace), read_only=True))
        errors = Console(stderr=True)
        bar = stack.enter_context(
            Progress(
                BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                console=errors, transient=True, disable=not errors.is_terminal,
            )
        )  # fmt: skip
        task = bar.add_task("", total=None)
        count = fleet.push(
            opened, url, collection, os.environ.get(api_key_env, ""),
            lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
    console.print(f"{counted(count, 'moment')} pushed to {url}, collection '{collection}'.")
