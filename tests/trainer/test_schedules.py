from __future__ import annotations

import itertools

import pytest

from trainer.schedules import Cosine, MultiStep


def test_cosine_warms_up_linearly_then_falls_to_its_floor() -> None:
    factors = [Cosine(warmup=0.1, floor=0.2).factor(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == pytest.approx(1)
    assert factors[55] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))


def test_multi_step_multiplies_at_the_start_of_each_named_epoch() -> None:
    schedule = MultiStep(epochs=(1, 4), gamma=0.5)
    by_epoch = [schedule.factor(10 * epoch, 100, 10) for epoch in range(6)]
    assert by_epoch == [1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert schedule.factor(9, 100, 10) == 1
