"""`vljepa doctor`: what is installed, which backend would run, and the fix for what would not."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.console import console, print_json
from vljepa_ros.errors import VLJepaError

from .checks import BROKEN, NOTE, WORKS, Check, run_checks
from .records import record

STYLES = {WORKS: "green", NOTE: "yellow", BROKEN: "red"}


def doctor(
    bundle: str = typer.Option(DEFAULT, help="The model bundle to check."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead."),
) -> None:
    """Check this machine; exit code 1 if the robot could not run on it."""
    checks = list(run_checks(bundle))
    backends, would_run = _backends(bundle)
    healthy = would_run is not None and all(check.state != BROKEN for check in checks)
    if as_json:
        rows = {
            "checks": [asdict(check) for check in checks],
            "backends": [asdict(backend) for backend in backends],
        }
        print_json(record("doctor", ok=healthy, would_run=would_run, **rows))
    else:
        _print("Installed", checks)
        _print("Backends, in order of preference", backends)
        console.print(
            f"The robot can run here, on {would_run}." if healthy else "The robot cannot run here.",
            style="green" if healthy else "red",
        )
    raise typer.Exit(0 if healthy else 1)


def _backends(bundle: str) -> tuple[list[Check], str | None]:
    """The backends as findings, and the one that `auto` would take."""
    from vljepa_ros.inference.backends import backends

    reports = backends()
    found = [
        Check(b.backend, WORKS, *_unbuilt(b.backend, bundle))
        if b.available
        else Check(b.backend, NOTE, b.reason, b.fix)
        for b in reports
    ]
    return found, next((b.backend for b in reports if b.available and not b.by_name), None)


def _unbuilt(backend: str, source: str) -> tuple[str, str]:
    """What is to be said of a backend that can run, and what to do beforehand."""
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.inference.backends import must_build

    try:
        graphs = load_bundle(source, verify=False).graphs.values()
        missing = [graph.name for graph in graphs if must_build(graph, backend)]
    except VLJepaError:  # the bundle's own check says more
        return "can run", ""
    if not missing:
        return "can run", ""
    return (
        f"can run; its engines are still to be built ({', '.join(missing)})",
        f"vljepa engines build --backend {backend}; else they are built at the first start",
    )


def _print(title: str, checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    console.print(title, style="bold")
    for check in checks:
        state = Text(f"  {check.state:<6}", STYLES[check.state])
        console.print(state, f" {check.name:<{width}}  {check.found}", hang=width + 12)
        if check.fix:
            console.print(f"{'':<{width + 12}}{check.fix}", style="dim", hang=width + 12)
