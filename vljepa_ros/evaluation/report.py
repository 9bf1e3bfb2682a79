"""The results as Markdown.

Invariant: the text is a function of the JSON alone: every figure in it stands in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .figures.targets import FEWER

STREAMS_PLOT, COMPARISON_PLOT = "selective-decoding.png", "comparison.png"
SPLITS = {"test": "held out by seed", "composition": "held out by composition"}
DIGITS = 4
Row = Sequence[str]


def rounded(value: Any) -> Any:
    """The same JSON with floats of at most 4 decimals, so that a difference in it is one to see."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return round(float(value), DIGITS) if isinstance(value, float) else value


def markdown(results: dict[str, Any]) -> str:
    """The whole document."""
    parts = [_head(results), _targets(results["targets"])]
    for number, title, render in (
        (1, "Open-vocabulary classification", _classification),
        (2, "Retrieval", _retrieval),
        (3, "Discriminative VQA", _vqa),
        (4, "Captioning", _captions),
    ):
        parts.append(f"## {number}. {title}\n\n{render(results['splits'])}")
    parts.append(f"## 5. Long streams\n\n{_streams(results['streams'])}")
    if "comparison" in results:
        parts.append(f"## 6. Against token generation\n\n{_comparison(results['comparison'])}")
    return "\n\n".join(parts) + "\n"


def table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table, figures to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def share(figure: dict[str, float]) -> str:
    """A share in percent with its interval, where it has one."""
    return _with_interval(figure, lambda value: f"{100 * value:.1f}")


def number(figure: dict[str, float], digits: int = 2) -> str:
    """A number with its interval, where it has one."""
    return _with_interval(figure, lambda value: f"{value:.{digits}f}")


def _with_interval(figure: dict[str, float], write: Any) -> str:
    text = str(write(figure["value"]))
    if "low" in figure:
        text += f" [{write(figure['low'])}, {write(figure['high'])}]"
    return text


def _head(results: dict[str, Any]) -> str:
    model, extent = results["model"], results["extent"]
    source = ", ".join(f"{k} {v}" for k, v in model["source"].items() if v is not None)
    read = f" Its Y-encoder has read {model['read']}." if model.get("read") else ""
    return f"""# Results

Made by `vljepa evaluate` from results.json, which holds every figure of this page; do not edit.

Model **{model["id"]}** ({source}), judged on {model["judged_on"]} by {model["judged_by"]} through \
{model["backend"]} on {model["machine"]}: the bundle as the robot runs it.{read}

Episodes: {extent["test"]} of 30 s with seeds that training never saw (*test*), \
{extent["composition"]} of 30 s made to hold combinations of colour, shape and kind of event that \
training never saw (*composition*), {extent["streams"]} streams of {extent["seconds"]:g} s. The \
clips of a split are the middles of all its events. Brackets: 95 % bootstrap intervals, whole \
episodes drawn again. *Pixels* is a linear discriminant on 8 by 8 pixel thumbnails, and *most \
frequent* the commonest answer of training, both from {extent["habits"]} training episodes."""


def _targets(targets: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            one["target"],
            one["wanted"],
            "not measured" if one["value"] is None else f"{one['value']:.3f}",
            "reached" if one["reached"] else "**not reached**",
        ]
        for one in targets
    ]
    reached = sum(one["reached"] for one in targets)
    title = f"## Targets: {reached} of {len(targets)} reached"
    return f"{title}\n\n{table(['target', 'wanted', 'measured', ''], rows)}"


def _classification(splits: dict[str, Any]) -> str:
    first = next(iter(splits.values()))["classification"]
    parts = [
        f"The nearest of the sentences of all {first['labels']} possible events names the event. "
        "*Kind* is the mean over the kinds of event, *kind of clips* the mean over clips; *object* "
        "is colour and shape together. Unseen synonyms: the same labels in words that no caption, "
        "question or answer of training holds (crimson, cup, tumbles off), the mean of two "
        "wordings."
    ]
    rows = {
        "training_wording": "training wording",
        "unseen_synonyms": "unseen synonyms",
        "held_out_only": "training wording, unseen combinations only",
        "chance": "chance",
        "most_frequent": "most frequent",
        "pixels": "pixels",
    }
    columns = ("kind", "kind_of_clips", "object", "both")
    for split, found in splits.items():
        named = found["classification"]
        parts.append(f"### {split}: {SPLITS[split]}, {named['clips']} clips")
        lines = []
        for key, words in rows.items():
            if key in named:
                clips = f" ({named[key]['clips']} clips)" if "clips" in named[key] else ""
                lines.append([words + clips, *(share(named[key][column]) for column in columns)])
        head = ["%", "kind", "kind of clips", "object", "both"]
        parts.append(table(head, lines))
    kinds = {kind: None for found in splits.values() for kind in found["classification"]["by_kind"]}
    head = ["kind, %"]
    for split in splits:
        head += [f"{split}: clips", "right", "else most often"]
    lines = []
    for kind in kinds:
        line = [kind]
        for found in splits.values():
            one = found["classification"]["by_kind"].get(kind)
            line += (
                ["0", "", ""]
                if one is None
                else [str(one["clips"]), f"{100 * one['right']:.1f}", one["taken_for"] or ""]
            )
        lines.append(line)
    return "\n\n".join([*parts, table(head, lines)])


def _retrieval(splits: dict[str, Any]) -> str:
    directions = {
        "text_to_video": "text to video",
        "text_to_video_distinct": "text to video, each caption once",
        "video_to_text": "video to text",
    }
    ways = {"bundle": "", "chance": ", chance", "pixels": ", pixels"}
    parts = [
        "Captions in training wording. Clips that share a caption count as equal: finding one of "
        "them is finding it. The intervals are over the queries; the gallery is the same."
    ]
    for split, found in splits.items():
        one = found["retrieval"]
        parts.append(f"### {split}: {one['clips']} clips, {one['captions']} different captions")
        rows = [
            [
                words + of,
                *(share(one[way][key][f"r{k}"]) for k in (1, 5, 10)),
                number(one[way][key]["median_rank"], 1),
            ]
            for key, words in directions.items()
            for way, of in ways.items()
        ]
        parts.append(table(["%", "R@1", "R@5", "R@10", "median rank"], rows))
    return "\n\n".join(parts)


def _vqa(splits: dict[str, Any]) -> str:
    parts = [
        "Every closed question that fits every second clip, answered by the nearest of all "
        "answers of its type. *Most frequent*: the commonest training answer to the question, "
        "without the clip."
    ]
    for split, found in splits.items():
        one = found["vqa"]
        parts.append(f"### {split}: {one['questions']} questions")
        rows = []
        for words, figures in (
            ("mean of types", one["types"]),
            ("all questions", one["all_questions"]),
            *((f"{kind} ({f['questions']})", f) for kind, f in one["by_type"].items()),
        ):
            ways = ("bundle", "chance", "most_frequent")
            rows.append([words, *(share(figures[way]) for way in ways)])
        parts.append(table(["%", "accuracy", "chance", "most frequent"], rows))
    return "\n\n".join(parts)


def _captions(splits: dict[str, Any]) -> str:
    parts = [
        "What the decoder says of a clip. CIDEr-D (0 to 10) against all wordings of the true "
        "event; kind, object and both as in 1, read from the decoded text. *Chance*: the sentence "
        "of another clip of the split. *Truth*: the true event in its first wording, which is as "
        "high as one sentence can come here."
    ]
    ways = {
        "bundle": "decoded text", "truth": "truth", "chance": "chance",
        "most_frequent": "most frequent", "pixels": "pixels",
    }  # fmt: skip
    for split, found in splits.items():
        one = found["captions"]
        parts.append(f"### {split}: {one['clips']} clips")
        rows = [
            [
                words,
                number(one[way]["cider"]),
                *(share(one[way][figure]) for figure in ("kind", "object", "both")),
            ]
            for way, words in ways.items()
        ]
        parts.append(table(["", "CIDEr-D", "kind, %", "object, %", "both, %"], rows))
    return "\n\n".join(parts)


def _streams(streams: dict[str, Any]) -> str:
    fewer, cost = streams["fewer_decodes"], streams["compute"]
    rows = {
        "decodes_per_minute": ("decodes a minute", 1), "cider": ("CIDEr-D of events", 2),
        "live_cider": ("CIDEr-D over time, live", 2), "boundary_f1": ("boundary F1 at ±1 s", 3),
        "boundary_precision": ("boundary precision", 3), "boundary_recall": ("boundary recall", 3),
        "delay": ("median delay, s", 2), "false_alarms_per_minute": ("false alarms a minute", 2),
    }  # fmt: skip
    ways = ("detector", "uniform_1_hz", "uniform_as_often")
    lines = [
        [words, *(number(streams[way][key], digits) if key in streams[way] else "" for way in ways)]
        for key, (words, digits) in rows.items()
    ]
    usual = streams["most_frequent"]
    parts = [
        f"{streams['streams']} streams, {streams['minutes']:.1f} minutes, "
        f"{streams['annotations_per_minute']:.1f} events a minute. The calibration used other "
        "streams. Every event is scored against the decode that stands for its middle: the one "
        "nearest in time for uniform decoding, the segment's for the others. *Live*: at every "
        "step what was said last, against what is true then. A false alarm is a segment that "
        "opens with no beginning of an event within a second.",
        f"![Decodes against CIDEr]({STREAMS_PLOT})",
        table(["", "detector, as calibrated", "uniform at 1 Hz", "uniform, as often"], lines),
        f"Saying “{usual['text']}” throughout scores CIDEr-D {usual['cider']:.2f}, live "
        f"{usual['live_cider']:.2f}.",
        f"As calibrated the detector decodes {number(fewer['times_fewer'])} times less often than "
        f"uniform decoding at 1 Hz; its CIDEr-D is {_signed(fewer['cider_difference'])} against "
        f"it, live {_signed(fewer['live_cider_difference'])}. "
        + _best(fewer["best_at_equal_cider"], "CIDEr-D")
        + " "
        + _best(fewer["best_at_equal_live_cider"], "live CIDEr-D"),
        _ceiling(streams["boundaries_per_minute"]),
        "### Compute of the whole pipeline",
    ]
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in cost["milliseconds"].items())
    used = cost["milliseconds_per_second"]
    most = max(used.values())
    parts += [
        f"Median time of one run: {times}. The gate skips {100 * cost['encodes_skipped']:.1f} % "
        "of the encodes.",
        table(
            ["per second of stream", "ms", "saved, %"],
            [[way, f"{ms:.1f}", f"{100 * (1 - ms / most):.1f}"] for way, ms in used.items()],
        ),
    ]
    return "\n\n".join(parts)


def _signed(figure: dict[str, float]) -> str:
    return _with_interval(figure, lambda value: f"{value:+.2f}")


def _best(found: dict[str, float] | None, measure: str) -> str:
    if found is None:
        return f"No threshold of the sweep brings its {measure} up to that of uniform decoding."
    return (
        f"At the threshold {found['parameter']:.2f} it decodes {found['times_fewer']:.2f} times "
        f"less often with no lower {measure}, the best of the sweep on these very streams."
    )


def _ceiling(boundaries: float) -> str:
    decodes = min(60 / FEWER, boundaries)
    return (
        f"There are {boundaries:.1f} boundaries a minute, and {FEWER:g} times fewer decodes than "
        f"at 1 Hz are {60 / FEWER:.1f} a minute: were each of them at a boundary of its own, F1 "
        f"would be {2 * decodes / (decodes + boundaries):.2f}."
    )


def _comparison(comparison: dict[str, Any]) -> str:
    protocol, times = comparison["protocol"], comparison["milliseconds"]
    ours, theirs = comparison["vl_jepa"], comparison["token_model"]
    millions = [one["parameters"]["trainable"] / 1e6 for one in (ours, theirs)]
    left_out = ours["parameters"]["not_counted"].items()
    apart = "".join(f"; {name}: {count / 1e6:.2f} M more" for name, count in left_out)
    rows = []
    for one, other in zip(ours["curve"], theirs["curve"], strict=True):
        rows.append([
            str(one["samples"]), number(one["cider"]), number(other["cider"]),
            share(one["classified"]["kind"]), share(one["said"]["kind"]),
            share(other["said"]["kind"]), share(one["classified"]["object"]),
            share(one["said"]["object"]), share(other["said"]["object"]),
        ])  # fmt: skip
    chance = comparison["chance"]
    rows.append([
        "chance", number(chance["cider"]), "", share(chance["said"]["kind"]), "", "",
        share(chance["said"]["object"]), "", "",
    ])  # fmt: skip
    head = [
        "samples", "CIDEr-D", "token model", "kind, nearest", "said", "token model",
        "object, nearest", "said", "token model",
    ]  # fmt: skip
    perplexity = theirs["by_perplexity"]
    return "\n\n".join([
        "The paper's section 4.5 in miniature: the same frozen X-encoder and data, the same "
        f"batches, and a model that generates tokens, {millions[1]:.2f} M trainable parameters "
        f"against {millions[0]:.2f} M of VL-JEPA{apart}. {protocol['samples']} samples, judged on "
        f"{protocol['held_out_clips']} "
        "held-out clips. *Nearest*: the nearest sentence to VL-JEPA's embedding; *said*: the "
        "event that the text names.",
        f"![Samples seen against captioning and classification]({COMPARISON_PLOT})",
        table(head, rows),
        f"The token model choosing the sentence of least perplexity, on {perplexity['clips']} of "
        f"the clips: kind {share(perplexity['kind'])} %, object {share(perplexity['object'])} %.",
        table(["", "ms"], [[key.replace("_", " "), f"{ms:.2f}"] for key, ms in times.items()]),
    ])  # fmt: skip
