"""The plots of the results: ways of selecting, and the comparison with a token model.

Invariant: they are drawn from the JSON results alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

WAYS = {  # name in the results: words, colour, line
    "uniform": ("uniform", "#8a8f98", "-o"),
    "uniform_pooled": ("uniform, pooled", "#c08a2b", "-s"),
    "cosine": ("consecutive cosine", "#7a5195", "-^"),
    "variance": ("local variance", "#3a7ca5", "-v"),
    "ward_offline": ("Ward, offline", "#1b7f4d", "--D"),
    "detector": ("causal detector", "#b3402a", "-o"),
}
PANELS = {
    "cider": "CIDEr-D of each event's decode",
    "live_cider": "CIDEr-D of what was said last, over time",
    "boundary_f1": "F1 of boundaries at ±1 s",
}


def selective_decoding(streams: dict[str, Any], path: Path) -> None:
    """Write the picture of the section `streams` of the results."""
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for axes, (measure, title) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, streams, measure)
        axes.set_title(title, fontsize=10)
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(
        f"{streams['streams']} streams, {streams['minutes']:.0f} minutes, "
        f"{streams['annotations_per_minute']:.0f} events a minute", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Axes, streams: dict[str, Any], measure: str) -> None:
    for name, (words, colour, line) in WAYS.items():
        points = sorted(streams["curves"][name], key=lambda one: one["decodes_per_minute"])
        axes.plot(
            [one["decodes_per_minute"] for one in points], [one[measure] for one in points],
            line, color=colour, label=words, ms=3.5, lw=1.2,
        )  # fmt: skip
    if measure != "boundary_f1":
        reference = streams["uniform_1_hz"][measure]["value"]
        axes.axhline(reference, color="#8a8f98", lw=0.8, ls=":")
    for name, marker in (("detector", "*"), ("uniform_1_hz", "P")):
        at = streams[name]
        axes.plot(
            at["decodes_per_minute"]["value"], at[measure]["value"], marker, ms=11,
            color=WAYS["detector" if name == "detector" else "uniform"][1], mec="black", mew=0.7,
            label="detector as calibrated" if name == "detector" else "uniform at 1 Hz",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 20, 40, 60, 120, 240], ["5", "10", "20", "40", "60", "120", "240"])
    axes.minorticks_off()
    axes.set_xlabel("decodes a minute")
    axes.spines[["top", "right"]].set_visible(False)


def token_comparison(result: dict[str, Any], path: Path) -> None:
    """Draw the curves of a result, with parameters and inference times."""
    panels = {"CIDEr-D of the caption": "cider", "kind of event": "kind", "object": "object"}
    curves = (
        ("VL-JEPA, nearest sentence", "vl_jepa", "classified", {"color": "#1f3a5f"}),
        ("VL-JEPA, decoded text", "vl_jepa", "said", {"color": "#5b8fc7", "ls": "--"}),
        ("token model, generated text", "token_model", "said", {"color": "#b3402a"}),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4.2), layout="constrained")
    for axis, (title, measured) in zip(axes, panels.items(), strict=True):
        for label, name, way, look in curves:
            points = result[name]["curve"]
            if measured == "cider" and way == "classified":
                continue  # no text
            shown = [_figure(point, measured, way) for point in points]
            seen = [point["samples"] for point in points]
            axis.plot(seen, [s["value"] for s in shown], marker="o", ms=4, label=label, **look)
            low, high = ([s[bound] for s in shown] for bound in ("low", "high"))
            axis.fill_between(seen, low, high, color=look["color"], alpha=0.12, lw=0)
        by_chance = _figure(result["chance"], measured, "said")["value"]
        axis.axhline(by_chance, color="grey", lw=0.8, ls=":", label="chance")
        axis.set_xscale("log", base=2)
        axis.set_xticks(seen, [f"{samples:,}" for samples in seen], fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set(title=title, xlabel="samples seen")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(_headline(result), fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _figure(point: dict[str, Any], measured: str, way: str) -> dict[str, float]:
    return dict(point["cider"] if measured == "cider" else point[way][measured])


def _headline(result: dict[str, Any]) -> str:
    counts = [result[n]["parameters"]["trainable"] / 1e6 for n in ("vl_jepa", "token_model")]
    times = result["milliseconds"]
    return (
        f"trainable: VL-JEPA {counts[0]:.2f} M, token model {counts[1]:.2f} M; one clip to words: "
        f"{times['vl_jepa_words']:.1f} ms and {times['token_model_words']:.1f} ms, "
        f"to an embedding {times['vl_jepa_embedding']:.1f} ms (after the X-encoder's "
        f"{times['x_encoder']:.1f} ms)"
    )
