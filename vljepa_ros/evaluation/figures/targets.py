"""What the shipped bundle is asked to reach, and whether it does.

Invariant: a target is judged by the value that was measured, not by a bound of its interval, and
one that cannot be judged counts as not reached.
"""

from __future__ import annotations

from typing import Any

Target = dict[str, Any]  # "target", "wanted", "value" (None: not measured) and "reached"

KIND = 0.85
OBJECT = 0.90
SYNONYMS = 0.10  # below the training wording
RECALL_AT_1 = 0.40
VQA = 0.85
COMPOSITION = 0.15  # below the test split
FEWER = 2.85  # times
F1 = 0.8
DELAY = 0.7  # s
FALSE_ALARMS = 1.0  # a minute


def judged(results: dict[str, Any]) -> list[Target]:
    """Every target of the results of `evaluate`, in the order of the tables."""
    splits = results["splits"]
    test, composition = measured(splits["test"]), measured(splits["composition"])
    lines = [
        _at_least("test: kind of event", KIND, test["kind of event"]),
        _at_least("test: object", OBJECT, test["object"]),
    ]
    for name in ("kind of event", "object"):
        below = test[name] - test[f"{name}, unseen synonyms"]
        lines.append(
            _at_most(f"test: {name}, unseen synonyms below training wording", SYNONYMS, below)
        )
    lines += [
        _at_least("test: text to video R@1 over 500 clips", RECALL_AT_1, test["R@1"]),
        _at_least("test: VQA, mean of types", VQA, test["VQA"]),
    ]
    for name, value in test.items():
        lines.append(
            _at_most(f"composition: {name} below test", COMPOSITION, value - composition[name])
        )
    return lines + _streams(results["streams"])


def measured(split: dict[str, Any]) -> dict[str, float]:
    """The figures of one split that the targets are about."""
    named, strange = (split["classification"][w] for w in ("training_wording", "unseen_synonyms"))
    return {
        "kind of event": named["kind"]["value"],
        "object": named["object"]["value"],
        "kind of event, unseen synonyms": strange["kind"]["value"],
        "object, unseen synonyms": strange["object"]["value"],
        "R@1": split["retrieval"]["bundle"]["text_to_video"]["r1"]["value"],
        "VQA": split["vqa"]["types"]["bundle"]["value"],
    }


def _streams(streams: dict[str, Any]) -> list[Target]:
    detector, fewer = streams["detector"], streams["fewer_decodes"]
    times, lost = fewer["times_fewer"]["value"], -fewer["cider_difference"]["value"]
    delay = detector.get("delay", {"value": None})["value"]
    both = _at_least("streams: fewer decodes than 1 Hz, CIDEr no lower", FEWER, times)
    both["reached"] = times >= FEWER and lost <= 0
    return [
        _at_least("streams: times fewer decodes than uniform at 1 Hz", FEWER, times),
        _at_most("streams: CIDEr below uniform at 1 Hz", 0.0, lost),
        both,
        _at_least("streams: boundary F1 at ±1 s", F1, detector["boundary_f1"]["value"]),
        _at_most("streams: median delay, s", DELAY, delay),
        _at_most("streams: false alarms a minute", FALSE_ALARMS,
                 detector["false_alarms_per_minute"]["value"]),
    ]  # fmt: skip


def _at_least(target: str, bound: float, value: float | None) -> Target:
    return {
        "target": target, "wanted": f"at least {bound:g}", "value": value,
        "reached": value is not None and value >= bound,
    }  # fmt: skip


def _at_most(target: str, bound: float, value: float | None) -> Target:
    return {
        "target": target, "wanted": f"at most {bound:g}", "value": value,
        "reached": value is not None and value <= bound,
    }  # fmt: skip
