"""What users meet in a long run, in one line each: what happened, to which samples, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from contract.errors import RunError, StoreError, UserError
from contract.store import TargetStore
from trainer.batch import Batch, Forward
from trainer.runs import Run
from trainer.state import State
from trainer.step import NotFiniteError

# Samples that a message names.
MOST_NAMED = 5
# What the operating system says of a file that can't grow.
FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left in the disk quota",
    errno.EFBIG: "a file would be larger than this process may write (ulimit -f)",
}


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Say what to do when memory or the disk has run out."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise RunError(
                f"{run.path}: {FULL[error.errno]}; what was saved before is whole: make room, and "
                f"`trainer run --run {run.path} --resume` goes on"
            ) from error
        if not _is_out_of_memory(error):
            raise
        recipe = run.recipe
        raise RunError(
            f"out of memory with batch_size {recipe.batch_size} and accumulate {recipe.accumulate}: in a new run, "
            f"take --set batch_size={max(2, recipe.batch_size // 2)} --set accumulate={2 * recipe.accumulate} (an "
            "objective then sees fewer negatives), or --set compute.checkpoint_activations=true (the same figures, "
            "slower)"
        ) from error


def not_finite(error: NotFiniteError, run: Run, state: State) -> RunError:
    """Which samples it was, where some stand out, and where the state before the step was kept."""
    step = state.step
    return RunError(
        f"step {step + 1}: {error}{_whose(error, run, state)}; the state before it is "
        f"{run.checkpoints.path(step)}; try a lower optimizer.learning_rate, in a new run"
    )


def require_unchanged(run: Run) -> None:
    """Raise `StoreError` if a store is no longer what the run reads."""
    for store, _ in run.streams.stores:
        try:
            now = TargetStore.open(store.path)
        except UserError as error:
            raise StoreError(f"{store.path} has gone while the run was reading it: {error}") from error
        changed = [key for key in store.fieldsets if key not in now.fieldsets]
        changed += [
            key
            for key, fieldset in store.fieldsets.items()
            if key in now.fieldsets and now.fieldsets[key].fingerprint != fieldset.fingerprint
        ]
        if changed:
            raise StoreError(
                f"{store.path} has changed while the run was reading it: {', '.join(changed)}; begin a new run"
            )


def _whose(error: NotFiniteError, run: Run, state: State) -> str:
    """Of the samples of a batch, on all ranks, those whose stored values or outputs are not finite."""
    if error.batch is None:
        return ""
    found = state.ranks.all(_own(error, error.batch, run, state))
    return next((text for text in found if text), "; the values and outputs of its samples are finite")


def _own(error: NotFiniteError, batch: Batch, run: Run, state: State) -> str:
    """Those of this rank."""
    stream, drawn = run.streams.draw(state.step * run.recipe.accumulate + error.number)
    with torch.no_grad(), state.device.autocast():
        named = Forward(state.student, batch).main
    values = {modality: tokens.values for modality, tokens in batch.inputs.items()}
    for what, tensors in (("stored values", values), ("outputs", named)):
        for name, tensor in tensors.items():
            bad = ~torch.isfinite(tensor).flatten(1).all(dim=1)
            if bad.any():
                modality = name.partition("/")[0]
                ids = stream.store.manifest.column(modality, "id", drawn.shown.rows[modality][bad.cpu().numpy()])
                more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
                return f"; {what} that are not finite: {name} of {', '.join(map(repr, ids[:MOST_NAMED]))}{more}"
    return ""


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch raises a bare RuntimeError where the machine's own memory has run out, and libraries of GPUs do."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known)
