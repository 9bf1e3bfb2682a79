"""What a user may set about perception, and what the bundle says where nothing is set.

Invariant: settings that `check` passed can be applied while the stream runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vljepa_ros.bundle.spec import BUNDLE, Bundle
from vljepa_ros.errors import VLJepaError

from .change import ChangeDetector

PARAMETER = "parameter"  # whose value is not the bundle's


class SettingsError(VLJepaError):
    """A setting is out of its range."""


@dataclass(frozen=True)
class Effective:
    """A setting as it is in effect.

    `name`: the parameter's, or, of what no parameter sets, the message field's or the manifest's.
    `origin`: PARAMETER, BUNDLE or CALIBRATION.
    """

    name: str
    value: float
    origin: str


@dataclass(frozen=True)
class Settings:
    """Settings of a `Perceiver`; None means the bundle's calibrated value.

    `rate`: steps per second, and `rates` the same for single cameras. `queries`: the standing
    questions; empty: the bundle's default. `gate_threshold`: grey levels 0..255, 0 turns the gate
    off; None: learnt from each camera's noise, from the bundle's up. `gate_max_age`, `max_gap`:
    seconds. `change_threshold`: a Ward cost. `candidate`, `min_segment`: in steps at the bundle's
    sample rate; they and the Ward cost keep their meaning in time when `rate` is another.
    `hysteresis`: 0.01..1.
    """

    rate: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    queries: Sequence[str] = ()
    gate_threshold: float | None = None
    gate_max_age: float = 10.0
    change_threshold: float | None = None
    candidate: int | None = None
    min_segment: int | None = None
    hysteresis: float | None = None
    max_gap: float = 3.0

    def check(self) -> None:
        """SettingsError, naming the setting, unless every value is in its range."""
        bounds: list[tuple[str, float | None, float, float]] = [
            ("rate", self.rate, 0.01, 1000.0),
            *((f"rates[{name}]", rate, 0.01, 1000.0) for name, rate in self.rates.items()),
            ("gate_threshold", self.gate_threshold, 0.0, 255.0),
            ("gate_max_age", self.gate_max_age, 0.0, 86400.0),
            ("change_threshold", self.change_threshold, 1e-6, 1e6),
            ("candidate", self.candidate, 1, 1000),
            ("min_segment", self.min_segment, 1, 100_000),
            ("hysteresis", self.hysteresis, 0.01, 1.0),
            ("max_gap", self.max_gap, 0.01, 86400.0),
        ]
        for name, value, low, high in bounds:
            if value is not None and not low <= value <= high:
                raise SettingsError(f"'{name}' must be in {low:g}..{high:g}, not {value:g}.")
        if len(set(self.queries)) != len(self.queries):
            raise SettingsError("'queries' must not name a question twice.")
        if any(not query.strip() for query in self.queries):
            raise SettingsError("'queries' must not hold an empty question.")

    def rate_of(self, camera: str, bundle: Bundle) -> float:
        """Steps per second of a camera."""
        return self.rates.get(camera) or self.value_of("rate", bundle)

    def value_of(self, name: str, bundle: Bundle) -> float:
        """What is in effect of a setting whose None means the bundle's value."""
        return next(one.value for one in self.effective(bundle) if one.name == name)

    def effective(self, bundle: Bundle) -> list[Effective]:
        """Rates and thresholds in effect, and where each came from.

        `rate`, `<camera>.rate`: steps per second. `gate_threshold`: grey levels 0..255, where the
        gate learns the lowest. `change_threshold`: a Ward cost. `candidate`, `min_segment`: steps.
        `hysteresis`: 0..1. `watch_threshold`, `phrases.cosine`, `phrases.margin`: cosines.
        `familiarity_threshold`: 0..1. Those that the bundle does not have are left out.
        """
        limits, change, phrases = bundle.thresholds, bundle.change, bundle.phrases
        found = [
            _either("rate", self.rate, bundle.clip.sample_rate),
            *(Effective(f"{name}.rate", rate, PARAMETER) for name, rate in self.rates.items()),
            _either("gate_threshold", self.gate_threshold, limits.gate, bundle.origin_of("gate")),
            _either(
                "change_threshold", self.change_threshold, limits.change, bundle.origin_of("change")
            ),
            _either("candidate", self.candidate, change.candidate),
            _either("min_segment", self.min_segment, change.min_segment),
            _either("hysteresis", self.hysteresis, change.hysteresis),
            Effective("watch_threshold", limits.watch, bundle.origin_of("watch")),
        ]
        if bundle.familiarity is not None:
            value, origin = bundle.familiarity_threshold, bundle.origin_of("familiarity")
            found.append(Effective("familiarity_threshold", value, origin))
        if phrases is not None:
            found.append(Effective("phrases.cosine", phrases.cosine, BUNDLE))
            found.append(Effective("phrases.margin", phrases.margin, BUNDLE))
        return found

    def queries_of(self, bundle: Bundle) -> tuple[str, ...]:
        """The standing questions; the one empty text where the bundle's predictor is asked nothing.

        SettingsError where such a bundle is given questions.
        """
        if self.queries and bundle.query is None:
            raise SettingsError(
                f"'queries' must be empty: {bundle.model_id} is asked nothing, its embeddings mean "
                "what is seen; give it labels, or ask with candidates."
            )
        return tuple(self.queries) or (bundle.default_query,)

    def set_detector(self, detector: ChangeDetector, camera: str, bundle: Bundle) -> None:
        """Put these settings into a detector that steps at the camera's rate."""
        scale = self.rate_of(camera, bundle) / bundle.clip.sample_rate
        values = {one.name: one.value for one in self.effective(bundle)}
        # Ward's cost grows with the number of steps, so it is counted in sample-rate steps.
        detector.threshold = values["change_threshold"] * scale
        detector.candidate = max(1, round(values["candidate"] * scale))
        detector.min_segment = max(1, round(values["min_segment"] * scale))
        detector.hysteresis = values["hysteresis"]


def _either(name: str, given: float | None, usual: float, origin: str = BUNDLE) -> Effective:
    """What is given, else what the bundle has."""
    if given is None:
        return Effective(name, float(usual), origin)
    return Effective(name, float(given), PARAMETER)
