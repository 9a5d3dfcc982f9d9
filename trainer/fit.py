"""The training loop.

for each step: batches -> forward -> objectives -> one weighted sum -> backward -> clip -> AdamW -> moving average
at the end of each epoch: validation, which may find a better student or end the run; a checkpoint
at the end of the run: the student store of each dataset, from `best`

Batch k is a function of the seed and k, and all else that a step needs is in `State`: a run that was killed and
resumed from a checkpoint ends in the same weights as one that was not.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, nullcontext

from tqdm import tqdm

from contract import config
from contract.errors import RunError, StoreError
from contract.store import writing
from trainer import faults, student_stores, teacher
from trainer.batch import Batch
from trainer.device import Device
from trainer.interruption import Interruption
from trainer.loader import Loader
from trainer.logs import Logs, Subject
from trainer.metrics import Metrics
from trainer.profile import Profile
from trainer.ranks import ALONE, Ranks
from trainer.runs import Run
from trainer.state import State, random_state, restore_random_state
from trainer.step import NotFiniteError, take_step
from trainer.validate import ValidationSet, judge, measure, validation_sets
from trainer.warm_start import WarmStart

NOT_VALIDATED = (
    "no pairs in split val, and no labelled items of a modality that is trained alone: no validation, `best` is "
    "the last epoch"
)
# Without the steps per second, which the samples per second say better: a line is soon full.
BAR = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def fit(run: Run, *, profile: bool = False, ranks: Ranks = ALONE) -> None:
    """Train the run to its end, from its newest checkpoint if there is one, and embed; `profile` traces steps.

    Of several ranks this is the first; who has started them holds the run's folder for them.
    """
    recipe, streams = run.recipe, run.streams
    with writing(run.path) if ranks.num == 1 else nullcontext(), faults.explained(run):
        state = _newest_state(run, ranks)
        run.create()
        validation = validation_sets(streams, recipe.languages)
        if not validation:
            print(NOT_VALIDATED, file=sys.stderr)
        logs = Logs(recipe.logs, Subject(path=run.path, recipe=config.tree(recipe)))
        with Metrics(run.metrics, state.step, state.sums, logs) as metrics:
            metrics.write_teachers(_teachers(run))
            _Loop(run, state, validation, metrics).go(Profile(run.path / "profile", wanted=profile))
        student_stores.write(run, state)
        run.finish()


def _teachers(run: Run) -> dict[str, float]:
    """The accuracy of every teacher, restored from the stored targets."""
    found = list(teacher.restored(run.streams))
    for one in found:
        print(one, file=sys.stderr)
        if one.is_surprising:
            raise StoreError(
                f"{one}: the stored targets are not this teacher's for these items; `pipeline verify` the "
                "store, and make it anew if it is whole"
            )
    return {one.reference: one.accuracy for one in found}


def follow(run: Run, ranks: Ranks) -> None:
    """Take the steps that the first rank takes, to the end of the run, and write nothing."""
    recipe = run.recipe
    with faults.explained(run):
        state = _newest_state(run, ranks)
        state.student.train()
        with _batches(run, state) as batches:
            while state.step < run.num_steps and not state.stopped:
                try:
                    take_step(state, recipe, batches, _learning_rate(run, state))
                except NotFiniteError as error:
                    raise faults.not_finite(error, run, state) from error
                if state.step % run.steps_per_epoch == 0:
                    state.stopped = ranks.from_first("")


def _newest_state(run: Run, ranks: Ranks) -> State:
    device = Device.choose(run.recipe.precision)
    device.prepare()
    found = run.checkpoints.newest()
    start = WarmStart(run) if found is None and "warm_start" in run.record else None
    state = State(run.recipe, run.streams, device, ranks, start, is_new=found is None and start is None)
    if found is not None:
        state.restore(*found)
    if start is not None and ranks.is_first:
        print(start, file=sys.stderr)
    steps = ranks.all(state.step)
    if len(set(steps)) > 1:
        raise RunError(
            f"{run.path}: the workers find checkpoints of different steps there ({', '.join(map(str, steps))}): "
            "is it one folder, which all of their machines share?"
        )
    return state


def _batches(run: Run, state: State) -> closing[Generator[Batch]]:
    """Of the steps that are left; the threads that read them end where their use does."""
    start, stop = (step * run.recipe.accumulate for step in (state.step, run.num_steps))
    return closing(iter(Loader(run.streams, start, stop, state.device.name)))


def _learning_rate(run: Run, state: State) -> float:
    """Of the next step."""
    recipe = run.recipe
    return recipe.optimizer.learning_rate * recipe.schedule.factor(state.step, run.num_steps, run.steps_per_epoch)


class _Loop:
    """The steps of a run from where its state is."""

    def __init__(self, run: Run, state: State, validation: Mapping[str, ValidationSet], metrics: Metrics) -> None:
        self._run, self._state, self._validation, self._metrics = run, state, validation, metrics
        self._per_epoch, self._num_steps = run.steps_per_epoch, run.num_steps

    def go(self, profile: Profile) -> None:
        """Take every step that is left, unless validation ends the run before."""
        state, recipe = self._state, self._run.recipe
        if state.stopped:
            return
        state.student.train()
        bar = tqdm(initial=state.step, total=self._num_steps, desc=recipe.name, file=sys.stderr, bar_format=BAR)
        with bar, profile, _batches(self._run, state) as batches, Interruption() as interruption:
            while state.step < self._num_steps and not state.stopped:
                self._step(batches, bar)
                profile.step()
                if interruption.asked and state.step < self._num_steps:
                    self._save()
                    again = f"trainer run --run {self._run.path} --resume"
                    raise RunError(
                        f"interrupted after step {state.step}, which is kept; `{again}` goes on from there"
                    )
        if state.stopped:
            print(f"stopped after step {state.step}: {state.stopped}", file=sys.stderr)

    def _step(self, batches: Iterator[Batch], bar: tqdm[None]) -> None:
        state, recipe, metrics = self._state, self._run.recipe, self._metrics
        rate = _learning_rate(self._run, state)
        before = random_state(state.device)
        try:
            metrics.add(take_step(state, recipe, batches, rate))
        except NotFiniteError as error:
            restore_random_state(before, state.device)
            self._save()
            raise faults.not_finite(error, self._run, state) from error
        bar.update()
        epoch_ends = state.step % self._per_epoch == 0
        if epoch_ends or state.step % recipe.log_every_steps == 0:
            bar.set_postfix(metrics.write_step(state.step, rate, state.device.memory_bytes()).shown)
        every = recipe.checkpoints.every_steps
        if epoch_ends:
            self._end_epoch(state.step // self._per_epoch)
        elif every and state.step % every == 0:
            self._save()

    def _end_epoch(self, epoch: int) -> None:
        state, recipe = self._state, self._run.recipe
        is_last = epoch == recipe.epochs
        faults.require_unchanged(self._run)
        is_best = is_last and not self._validation
        if self._validation and (is_last or epoch % recipe.validation.every_epochs == 0):
            figures = measure(self._validation, state)
            verdict = judge(figures, recipe.validation, state)
            self._metrics.write_validation(state.step, epoch, figures, verdict.score)
            tqdm.write(f"epoch {epoch}: val {verdict}", file=sys.stderr)
            is_best = verdict.is_best
        # `best` first: a kill between the two then repeats an epoch instead of losing its best.
        if is_best:
            state.save(self._run.best)
        self._save()
        state.stopped = state.ranks.from_first(state.stopped)
        self._metrics.restart_clock()

    def _save(self) -> None:
        self._run.checkpoints.save(self._state.step, self._state.tensors(), self._state.scalars())
