"""How a stage is run: what is kept of it, and that it goes on from there."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from vljepa_ros.training.loop import LAST, fit, make_trainer


class Counting(lightning.LightningModule):
    """A stage of one number, which notes the steps that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.asked: list[int] = []

    def training_step(self, _batch: int, _index: int) -> Tensor:
        self.asked.append(self.global_step)
        return (self.value - 1).square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def run(folder: Path, steps: int) -> list[int]:
    """The steps that a training in `folder` is still asked for."""
    stage = Counting()
    fit(make_trainer(folder, steps), stage, range(steps), folder)
    return stage.asked


def test_a_training_goes_on_where_its_folder_was_moved_to(tmp_path: Path):
    """Its work is kept under the one name that it is taken up from, in each place."""
    before, after = tmp_path / "before", tmp_path / "after"
    assert run(before, 100) == [*range(100)]
    before.rename(after)
    assert run(after, 200) == [*range(100, 200)]
    assert run(after, 300) == [*range(200, 300)]
    assert [path.name for path in after.glob("*.ckpt")] == [LAST]
