"""The training loop.

for each batch: forward -> objectives -> one weighted sum -> backward -> clip -> AdamW
at the end of each epoch: retrieval on the validation split, `last` and perhaps `best`
at the end of the run: the student store of each dataset, from `best`
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from contract.errors import RunError, StoreError
from contract.store import writing
from trainer import student_stores, teacher
from trainer.batch import Batch, Forward
from trainer.device import Device
from trainer.loader import Loader
from trainer.metrics import Metrics
from trainer.recipes import Recipe
from trainer.runs import Run
from trainer.state import State
from trainer.teacher import TeacherAccuracy
from trainer.validate import ValidationSet, validation_sets


def fit(run: Run) -> None:
    """Train the run to its end, from its last checkpoint if there is one, and embed."""
    recipe, streams = run.recipe, run.streams
    with writing(run.path):
        state = State(recipe, streams, Device.choose(recipe.precision))
        run.create()
        if run.last.exists():
            state.restore(run.last)
        validation = validation_sets(streams, recipe.languages)
        if not validation:
            print("no pairs in split val: no validation, `best` is the last epoch", file=sys.stderr)
        teachers = list(teacher.restored(streams))
        for found in teachers:
            print(found, file=sys.stderr)
            if found.is_surprising:
                raise StoreError(
                    f"{found}: the stored targets are not this teacher's for these items; `pipeline verify` the "
                    "store, and make it anew if it is whole"
                )
        _train(run, state, validation, teachers)
        student_stores.write(run, state)
        run.finish()


def _train(
    run: Run, state: State, validation: Mapping[str, ValidationSet], teachers: Sequence[TeacherAccuracy]
) -> None:
    recipe, streams = run.recipe, run.streams
    per_epoch = streams.steps_per_epoch
    num_steps = recipe.epochs * per_epoch
    state.student.train()
    with (
        Metrics(run.metrics, state.step) as metrics,
        tqdm(initial=state.step, total=num_steps, desc=recipe.name, unit="step", file=sys.stderr) as bar,
    ):
        if teachers:
            metrics.write_teachers(state.step, {found.reference: found.accuracy for found in teachers})
        for batch in Loader(streams, state.step, num_steps, state.device.name):
            rate = recipe.optimizer.learning_rate * recipe.schedule.factor(state.step, num_steps, per_epoch)
            parts = update(state, recipe, batch, rate)
            metrics.add(parts, batch.num_rows)
            bar.update()
            epoch_ends = state.step % per_epoch == 0
            if epoch_ends or state.step % recipe.log_every_steps == 0:
                line = metrics.write_step(state.step, rate)
                shown = {name: f"{value:.3g}" for name, value in line["parts"].items()}
                bar.set_postfix({**shown, "lr": f"{rate:.1e}", "samples/s": f"{line['samples_per_s']:.0f}"})
            if epoch_ends:
                _end_epoch(run, state, validation, metrics, state.step // per_epoch)


def update(state: State, recipe: Recipe, batch: Batch, learning_rate: float) -> dict[str, float]:
    """One step; gives the value of every part, "objective.part", before its weight."""
    forward = Forward(state.student, batch)
    parts: dict[str, Tensor] = {}
    loss = torch.zeros((), device=state.device.name)
    with state.device.autocast():
        for (name, config), objective in zip(recipe.objectives.items(), state.objectives, strict=True):
            for part, value in objective(batch, forward).items():
                parts[f"{name}.{part}"] = value
                loss = loss + config.weight * value
    values = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
    _require_finite(values, state.step + 1)
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    learned = [*state.student.parameters(), *state.objectives.parameters()]
    norm = nn.utils.clip_grad_norm_(learned, recipe.gradient_clip)
    _require_finite({"the gradient's norm": norm.item()}, state.step + 1)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.step += 1
    return values


def _require_finite(values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunError(
                f"step {step}: {name} is {value}; the checkpoints hold the state of the last whole epoch; "
                "try a lower optimizer.learning_rate, in a new run"
            )


def _end_epoch(
    run: Run, state: State, validation: Mapping[str, ValidationSet], metrics: Metrics, epoch: int
) -> None:
    recipe = run.recipe
    is_last = epoch == recipe.epochs
    is_best = is_last and not validation
    if validation and (is_last or epoch % recipe.validation.every_epochs == 0):
        metric = recipe.validation.metric
        found = {dataset: set_.measure(state.student, state.device) for dataset, set_ in validation.items()}
        figures = {dataset: one.retrieval for dataset, one in found.items()}
        score = float(np.mean([set_.score(figures[dataset], metric) for dataset, set_ in validation.items()]))
        is_best = score > state.best
        state.best = max(score, state.best)
        neighbours = {dataset: one.neighbours for dataset, one in found.items() if one.neighbours}
        metrics.write_validation(state.step, epoch, figures, neighbours, score)
        shown = [
            f"{direction} {values[metric]:.1f}"
            for by_direction in figures.values()
            for direction, values in by_direction.items()
        ]
        mark = " (best)" if is_best else ""
        tqdm.write(f"epoch {epoch}: val {metric}: {', '.join(shown)}{mark}", file=sys.stderr)
    # `best` first: a kill between the two then repeats an epoch instead of losing its best.
    if is_best:
        state.save(run.best)
    state.save(run.last)
    metrics.restart_clock()
