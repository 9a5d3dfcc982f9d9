"""The moving average of a student's weights."""

from __future__ import annotations

import torch
from torch import nn

from trainer.recipes import Ema
from trainer.state import average
from trainer.students.adapters import Standardise


def test_average_moves_the_weights_and_takes_over_the_constants_of_a_channel_that_never_moves() -> None:
    constants = Standardise(3)
    constants.measure(torch.randn(5, 4, 3) * torch.tensor([1.0, 0.0, 2.0]), None)
    student = nn.Sequential(constants, nn.Linear(3, 2))
    averaged = average(student, Ema(decay=0.9, warmup=False), lambda: 1)
    averaged.update_parameters(student)  # the first is a copy
    before = student[1].weight.detach().clone()
    with torch.no_grad():
        student[1].weight.add_(1.0)
    averaged.update_parameters(student)
    torch.testing.assert_close(averaged.module[1].weight, before + 0.1)
    assert averaged.module[0].deviation[1] == torch.inf
    torch.testing.assert_close(averaged.module[0].deviation, constants.deviation)
