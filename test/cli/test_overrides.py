"""`vljepa up --set`: what is no setting is said before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from vljepa_ros.cli.live.overrides import merged, parsed
from vljepa_ros.errors import VLJepaError

STARTED = ("perception", "decoder", "memory")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("perception.change_threshold=0.5", 0.5),
        ("perception.change_threshold=1e-3", 0.001),
        ("perception.rate=2", 2.0),
        ("perception.candidate=3", 3),
        ("perception.serve_while_building=false", False),
        ("perception.cameras=[front, rear]", ["front", "rear"]),
        ("perception.front.rate=2", 2.0),
        ("perception.label_template=a {} = b", "a {} = b"),
        ("decoder.vlm.model=007", "007"),
        ("memory.robot=", ""),
    ],
)
def test_a_value_has_its_parameters_type(text: str, value: Any) -> None:
    node, _, rest = text.partition(".")
    found = parsed([text], STARTED)
    assert found == {node: {rest.partition("=")[0]: value}}
    assert type(next(iter(found[node].values()))) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rate=2", "--set 'rate=2': write NODE.PARAM=VALUE, e.g. "),
        ("perception.rate", "write NODE.PARAM=VALUE"),
        ("percepton.rate=2", "there is no node 'percepton'; did you mean 'perception'?"),
        ("x.rate=2", "there is no node 'x'; there are: perception, decoder, memory, camera, web."),
        ("perception.gate_treshold=2", "no parameter 'gate_treshold'; did you mean 'gate_thr"),
        ("perception.front.rat=2", "there is no parameter 'front.rat'; "),
        ("decoder.x=2", "there is no parameter 'x'; there are: autostart, bundle, "),
        ("perception.rate=fast", "Parameter 'rate' must be a number, not 'fast'."),
        ("perception.rate=-1", "Parameter 'rate' must be in 0..1000, not -1."),
        ("perception.labels=a cup", "Parameter 'labels' must be a list of texts; write [a cup]"),
        ("perception.backend=gpu", "Parameter 'backend' must be one of auto, "),
        ("web.port=8481", "the web node is not started; add --web."),
    ],
)
def test_what_is_no_setting_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(VLJepaError) as caught:
        parsed([text], STARTED)
    assert sentence in str(caught.value)


def test_a_setting_is_closer_to_the_point_than_an_option() -> None:
    options = {"perception": {"bundle": "a", "rate": 1.0}, "decoder": {"bundle": "a"}}
    given = parsed(["perception.bundle=b"], STARTED)
    assert merged(options, given) == {
        "perception": {"bundle": "b", "rate": 1.0}, "decoder": {"bundle": "a"},
    }  # fmt: skip
