"""One step: batches, the student's passes, the objectives, the gradient, the optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from contract.errors import ConfigError, RunError
from trainer.batch import Batch, Forward, whole
from trainer.objectives.loss import Loss
from trainer.recipes import Recipe
from trainer.state import State

NORM = "the gradient's norm"
# Of a float16 loss; where the gradient is still not finite, the scale is not to blame.
LOWEST_SCALE = 1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step leaves: every part, "objective.part", before its weight; rows; seconds it waited for batches."""

    parts: dict[str, float]
    num_rows: int
    wait_s: float


class NotFiniteError(RunError):
    """A part of the loss, or the gradient, is not finite; `number` counts the batches of the step from 0."""

    def __init__(self, what: str, value: float, number: int, batch: Batch | None) -> None:
        super().__init__(f"{what} is {value}")
        self.number, self.batch = number, batch


def take_step(state: State, recipe: Recipe, batches: Iterator[Batch], learning_rate: float) -> Step:
    """Take the next `recipe.accumulate` batches and move the student; raises before anything has moved."""
    state.optimizer.zero_grad()
    values: dict[str, list[float]] = {}
    num_rows, wait_s = 0, 0.0
    for number in range(recipe.accumulate):
        asked = time.monotonic()
        batch = next(batches)
        wait_s += time.monotonic() - asked
        with record_function("forward"):
            parts, loss = objectives(state, recipe, batch, number)
        with record_function("backward"):
            torch.autograd.backward(state.scaler.scale(loss / recipe.accumulate))
        num_rows += state.ranks.total(batch.num_rows)
        # Read once the backward pass is under way: a GPU then has work while the host waits for it.
        for name, value in zip(parts, torch.stack(list(parts.values())).tolist(), strict=True):
            if not math.isfinite(value):
                raise NotFiniteError(name, value, number, batch)
            values.setdefault(name, []).append(value)
    with record_function("optimizer"):
        _move(state, recipe, learning_rate)
    state.step += 1
    if state.ema is not None:
        state.ema.update_parameters(state.student)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    return Step(parts=means, num_rows=num_rows, wait_s=wait_s)


def objectives(state: State, recipe: Recipe, batch: Batch, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Every part of the loss on the step's `number`th batch, of all ranks, and their weighted sum, scalars."""
    ranks = state.ranks.at(recipe.seed, state.step, number)
    forward, whole_batch = Forward(state.model, batch, ranks), whole(batch, ranks)
    parts: dict[str, Tensor] = {}
    loss = torch.zeros((), device=state.device.name)
    with state.device.autocast():
        for (name, config), objective in zip(recipe.objectives.items(), state.objectives, strict=True):
            if batch.objectives is not None and name not in batch.objectives:
                continue
            for part, value in objective(whole_batch, forward).items():
                parts[f"{name}.{part}"] = value
                loss = loss + config.weight * value
    if not parts:
        raise ConfigError(
            f"no objective of the recipe says anything of a batch of stream {'-'.join(batch.pair)}: leave it out"
        )
    return parts, loss


def _move(state: State, recipe: Recipe, learning_rate: float) -> None:
    state.ranks.add_up(state.student, state.objectives)
    state.scaler.unscale_(state.optimizer)
    learned = [*state.student.parameters(), *state.objectives.parameters()]
    norm = nn.utils.clip_grad_norm_(learned, recipe.gradient_clip).item()
    # A gradient that float16 can't hold is no mistake as long as the scale can be lowered: the step is left out.
    if not math.isfinite(norm) and not (state.scaler.is_enabled() and state.scaler.get_scale() > LOWEST_SCALE):
        raise NotFiniteError(NORM, norm, recipe.accumulate - 1, None)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.scaler.step(state.optimizer)
    state.scaler.update()
    for objective in state.objectives:
        cast(Loss, objective).stepped(state.student)
