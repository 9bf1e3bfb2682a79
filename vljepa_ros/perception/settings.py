"""What a user may set about perception, and what the bundle says where nothing is set.

Invariant: settings that `check` passed can be applied while the stream runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.errors import VLJepaError

from .change import ChangeDetector


class SettingsError(VLJepaError):
    """A setting is out of its range."""


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
        return self.rates.get(camera) or self.rate or bundle.clip.sample_rate

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
        default = bundle.change
        # Ward's cost grows with the number of steps, so it is counted in sample-rate steps.
        detector.threshold = (self.change_threshold or bundle.thresholds.change) * scale
        detector.candidate = max(1, round((self.candidate or default.candidate) * scale))
        detector.min_segment = max(1, round((self.min_segment or default.min_segment) * scale))
        detector.hysteresis = default.hysteresis if self.hysteresis is None else self.hysteresis
