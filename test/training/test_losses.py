"""The training losses against slow loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from vljepa_ros.training.losses import StateHead, info_nce

SHAPES, COLOURS = 6, 8


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 16, generator=generator), dim=-1)


def slow_info_nce(
    predicted: list, texts: list, meanings: list, temperature: float, text_meanings: list
) -> float:
    batch, loss = len(predicted), 0.0
    score = [[sum(a * b for a, b in zip(p, t)) / temperature for t in texts] for p in predicted]
    for i in range(batch):
        others = [j for j in range(len(texts)) if j != i and text_meanings[j] != meanings[i]]
        of_text = sum(math.exp(score[i][j]) for j in [i, *others])
        others = [j for j in range(batch) if j != i and meanings[j] != text_meanings[i]]
        of_clip = sum(math.exp(score[j][i]) for j in [i, *others])
        loss -= math.log(math.exp(score[i][i]) / of_text) + math.log(
            math.exp(score[i][i]) / of_clip
        )
    return loss / (2 * batch)


@pytest.mark.parametrize("further", [0, 3])
def test_info_nce_is_the_slow_loop(further: int):
    meanings, after = [0, 1, 0, 2, 3], [1, 4, 4][:further]
    predicted, texts = unit(5, 0), unit(5 + further, 1)
    args = torch.tensor(meanings + after), torch.tensor(0.1)
    wanted = slow_info_nce(predicted.tolist(), texts.tolist(), meanings, 0.1, meanings + after)
    assert info_nce(predicted, texts, *args).item() == pytest.approx(wanted, rel=1e-5)


def loss(meanings: list[int], text_meanings: list[int], texts: torch.Tensor | None = None) -> float:
    texts = unit(len(text_meanings), 1) if texts is None else texts
    assert text_meanings[: len(meanings)] == meanings
    ids = torch.tensor(text_meanings)
    return info_nce(unit(len(meanings), 0), texts, ids, torch.tensor(0.07)).item()


def test_equal_meanings_are_not_negatives():
    """Nothing pushes a prediction from another text of its own meaning."""
    predicted = unit(2, 0).requires_grad_()
    texts = unit(3, 1).requires_grad_()
    value = info_nce(predicted, texts, torch.zeros(3, dtype=torch.long), torch.tensor(0.07))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert predicted.grad.abs().max() < 1e-6
    assert loss([0, 0], [0, 0]) < loss([0, 1], [0, 1])


def test_further_negatives_count_and_only_those_of_other_meanings():
    alone = loss([0, 1], [0, 1])
    texts = torch.cat([unit(2, 1), unit(1, 0)])  # the third is the first prediction itself
    assert loss([0, 1], [0, 1, 2], texts) > alone + 0.5
    assert loss([0, 1], [0, 1, 0], texts) < loss([0, 1], [0, 1, 2], texts)


def test_the_parts_of_a_batch_on_several_devices_make_the_whole():
    """The mean of the processes' losses, each over its own pairs, is the loss of all pairs."""
    predicted, texts = unit(6, 0), unit(9, 1)
    ids, temperature = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7, 8]), torch.tensor(0.1)
    whole = info_nce(predicted, texts, ids, temperature)
    parts = [info_nce(predicted, texts, ids, temperature, slice(a, a + 2)) for a in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    assert parts[0] != parts[1]


def test_info_nce_stays_in_fp32_under_autocast():
    predicted, texts = unit(6, 0), unit(6, 1)
    ids = torch.arange(6)
    wanted = info_nce(predicted, texts, ids, torch.tensor(0.02))
    assert wanted > 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = info_nce(predicted, texts, ids, torch.tensor(0.02))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


# The head that reads the state


def state(cells: int = 8) -> dict[str, torch.Tensor]:
    """An empty table: one clip of `cells` cells."""
    return {
        "objectness": torch.zeros(1, cells), "shape": torch.zeros(1, cells, dtype=torch.long),
        "colour": torch.zeros(1, cells, dtype=torch.long), "offset": torch.zeros(1, cells, 2),
        "motion": torch.zeros(1, cells, 2), "flags": torch.zeros(1, cells, 5),
        "gripper": torch.zeros(1, cells), "gripper_state": torch.zeros(1, cells, 3),
        "hand": torch.zeros(1, cells),
    }  # fmt: skip


def occupied() -> dict[str, torch.Tensor]:
    """An object in cell 1 and the gripper in cell 2."""
    there = state()
    there["objectness"][0, 1] = 1
    there["gripper"][0, 2] = 1
    return there


def head_and_tokens() -> tuple[StateHead, torch.Tensor]:
    torch.manual_seed(0)
    return StateHead(16, SHAPES, COLOURS), torch.randn(1, 8, 16)


def test_an_empty_table_gives_a_finite_loss_that_trains():
    head, tokens = head_and_tokens()
    tokens.requires_grad_()
    value = head(tokens, state())
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert tokens.grad.isfinite().all()
    assert (tokens.grad.abs().sum(-1) > 0).all()


CHANGES = {
    "objectness": 1.0, "shape": 2, "colour": 3, "offset": 0.7, "motion": 2.0, "flags": 1.0,
    "gripper": 1.0, "gripper_state": 0.8, "hand": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_of_the_state_counts_where_something_is(field: str):
    head, tokens = head_and_tokens()
    before = head(tokens, occupied())
    there = occupied()
    cell = {"objectness": 5, "gripper": 5, "hand": 5, "gripper_state": 2}.get(field, 1)
    there[field][0, cell] = CHANGES[field]
    assert (head(tokens, there) - before).abs() > 1e-3


@pytest.mark.parametrize("field", ["shape", "colour", "offset", "motion", "flags", "gripper_state"])
def test_what_empty_cells_hold_does_not_count(field: str):
    head, tokens = head_and_tokens()
    there = occupied()
    there[field][0, 6] = CHANGES[field]
    assert head(tokens, there) == head(tokens, occupied())


def test_the_loss_falls_to_nothing_when_the_state_is_read_right():
    head, tokens = head_and_tokens()
    there = occupied()
    there["shape"][0, 1], there["colour"][0, 1], there["flags"][0, 1, 2] = 4, 7, 1
    there["motion"][0, 1], there["gripper_state"][0, 2] = torch.tensor([0.5, -1.0]), 0.5
    first = head(tokens, there).item()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        value = head(tokens, there)
        value.backward()
        optimizer.step()
    assert value.item() < 0.02 * first
