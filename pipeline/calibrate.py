"""How long a run will take: a few batches of it, by the same code, into a store that is thrown away.

What was measured is kept by dataset, FieldSet and machine, so that a run can say afterwards how far off it was:

    $PRECEPT_CACHE/calibrations/<fingerprint of these>.json
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from contract import fingerprint
from contract.errors import ConfigError, DataError
from contract.files import replace_file
from contract.manifest import Manifest
from contract.storage import StorePath, is_url
from contract.storage.cache import Cache
from contract.store import TargetStore
from pipeline import plan
from pipeline.decoding import BATCHES_AHEAD
from pipeline.plan import Task
from pipeline.precompute import Done, Here
from pipeline.settings import Workers
from pipeline.timing import Progress, Timing
from pipeline.worker import spread

MOST_BATCHES = 32
FEWEST_ROWS = 1024
# Slow encoders stop after so long, once there are enough batches to go by.
LONGEST_S = 15.0
FEWEST_BATCHES = 4
# Writing goes on beside computing as it will in the run: some shards of a few batches each.
BATCHES_PER_SHARD = 4


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What some batches of a FieldSet took on `device`, once everything was running."""

    rows_per_s: float
    device: str
    is_gpu: bool
    bound_by: str

    def seconds(self, num_rows: int, num_devices: int = 1) -> float:
        """How long so many rows take."""
        return num_rows / self.rows_per_s / num_devices


def measure(
    task: Task, manifest: Manifest, store_path: StorePath, workers: Workers, say: Callable[[str], None]
) -> Calibration:
    """Compute some batches of the task beside where its store lies; `DataError` if nothing can be decoded."""
    modality, size = task.fieldset.modality, max(1, task.fieldset.batch_size // task.fieldset.views_per_row)
    rows = spread(np.arange(manifest.num_rows(modality)), max(size * MOST_BATCHES, FEWEST_ROWS))
    sample = Manifest(
        dataset=manifest.dataset,
        protocol=manifest.protocol,
        items={modality: manifest.items[modality].take(rows)},
        media_root=manifest.media_root,
        num_classes=manifest.num_classes,
    )
    fieldset = replace(task.fieldset, rows_per_shard=1 << (BATCHES_PER_SHARD * size - 1).bit_length())
    beside = None if is_url(store_path) else next(p for p in Path(store_path).absolute().parents if p.exists())
    with tempfile.TemporaryDirectory(prefix=".calibration-", dir=beside) as folder:
        store = TargetStore.create(Path(folder) / "sample.zarr", sample)
        here = Here(store.path, workers)
        tried = plan.task(fieldset, task.encoder, task.views, sample, store)
        store.add(fieldset, here.ask(tried, "constants") if any(f.constants for f in fieldset.fields) else None)
        here.prepare(tried)
        num_rows, elapsed_s, timing = _steady(here, tried, say)
        if len(store.quarantined(fieldset.key)) == len(rows):
            raise DataError(
                f"{fieldset.key}: none of {len(rows)} inputs under {manifest.media_root} could be decoded, and a "
                "calibration needs some"
            )
        device, is_gpu = _named(here.worker(tried).device)
    return Calibration(rows_per_s=num_rows / elapsed_s, device=device, is_gpu=is_gpu, bound_by=timing.bound_by)


def table(tasks: Sequence[Task], found: Sequence[Calibration], num_gpus: int | None) -> str:
    """Hours, GPU-hours and bytes of what is missing, for a person."""
    lines, total_s = [], 0.0
    for task, one in zip(tasks, found, strict=True):
        seconds = one.seconds(task.missing_rows)
        total_s += seconds
        lines.append(
            f"{task.fieldset.key}: {one.rows_per_s:,.1f} rows/s, bound by {one.bound_by}: {duration(seconds)} for "
            f"{task.missing_rows:,} rows, {plan.gigabytes(task.missing_bytes)}"
        )
    device, is_gpu = found[0].device, found[0].is_gpu
    hours = f"{total_s / 3600:.3g} GPU-hours" if is_gpu else "0 GPU-hours, as there is no GPU here"
    total_bytes = plan.gigabytes(sum(task.missing_bytes for task in tasks))
    lines.append(f"on this machine ({device}): {duration(total_s)}, {hours}, {total_bytes}")
    if num_gpus:
        ones = f"{num_gpus} GPUs" if is_gpu else f"{num_gpus} machines, without a GPU"
        each = f"each as fast as this one ({device})"
        lines.append(f"on {ones}, {each}: {duration(total_s / num_gpus)}, {hours}, {total_bytes}")
    return "\n".join(lines)


def compared(dataset: str, done: Done) -> str | None:
    """What was predicted for a run against what it took; None if nothing was."""
    predicted, key = kept(dataset, done.task), done.task.fieldset.key
    if predicted is None:
        return None
    seconds, number = predicted.seconds(done.task.missing_rows, done.num_devices), done.num_devices
    return (
        f"{key}: predicted {duration(seconds)} on {f'{number} x ' if number > 1 else ''}{predicted.device}, took "
        f"{duration(done.elapsed_s)}, {done.elapsed_s / seconds:.2f} times that"
    )


def duration(seconds: float) -> str:
    """A time for a person."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def keep(dataset: str, task: Task, calibration: Calibration) -> None:
    """Remember it for this machine."""
    file = _file(dataset, task)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(asdict(calibration)).encode())


def kept(dataset: str, task: Task) -> Calibration | None:
    """What was remembered of the task on this machine."""
    try:
        return Calibration(**json.loads(_file(dataset, task).read_text()))
    except (ConfigError, OSError, ValueError, TypeError):  # none there, or of another version of this program
        return None


def _steady(here: Here, task: Task, say: Callable[[str], None]) -> tuple[int, float, Timing]:
    """Rows and seconds of the batches after the first ones, and where the time went.

    The first one of a model takes longer than any other, and some are decoded while it does.
    """
    happened: list[tuple[float, Progress]] = []
    started = time.perf_counter()
    with closing(here.compute(task)) as progresses:
        for progress in progresses:
            happened.append((time.perf_counter(), progress))
            for line in progress.notes:
                say(f"note: {line}")
            if len(happened) > FEWEST_BATCHES and time.perf_counter() - started > LONGEST_S:
                break
    num_first = min(1 + BATCHES_AHEAD, len(happened) // 4)
    since = happened[num_first - 1][0] if num_first else started
    num_rows, timing = 0, Timing()
    for _, progress in happened[num_first:]:
        num_rows += progress.num_rows
        timing += progress.timing
    return num_rows, happened[-1][0] - since, timing


def _named(device: str) -> tuple[str, bool]:
    """What a device is called, and whether it is a GPU."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device), True
    num_cores = torch.get_num_threads()
    return (f"{num_cores} CPU core{'s' if num_cores > 1 else ''}" if device == "cpu" else device), False


def _file(dataset: str, task: Task) -> Path:
    what = [platform.node(), dataset, task.fieldset.fingerprint]
    return Cache.of_environment().folder / "calibrations" / f"{fingerprint.of_tree(what)}.json"
