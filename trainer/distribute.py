"""One run on several workers, through Ray Train: GPUs or processes of this machine, or of a cluster.

    driver                          worker r of R (`_work`)
    holds RUN's lock                reads its share of every batch, trains with the others (trainer/ranks.py)
    shows RUN/log.txt      <-----   rank 0 alone writes: checkpoints, metrics, validation, the student stores

A worker that dies takes its group with it; Ray starts a new one, which goes on from the newest checkpoint. RUN must
therefore be one folder for all of the machines, at one path, and so must the stores. A user's mistake ends the run
at once instead: it would only be made again.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from contract.errors import ConfigError, RunError, UserError
from contract.store import writing
from trainer import fit, runs
from trainer.cluster import followed, joined
from trainer.ranks import Ranks
from trainer.runs import Run

# Workers that wait for the first one's validation are no fault; a worker that is gone is found by Ray, not by this.
TIMEOUT_S = 7 * 24 * 3600
LOG = "log.txt"
# Where Ray Train keeps what it knows of a run while it trains.
RAY = "ray"


def fit_on_workers(
    run: Run, num_workers: int, address: str | None = None, *, restarts: int = 3, profile: bool = False
) -> None:
    """Train the run to its end as `fit` does, each batch shared by the workers; these may die `restarts` times."""
    run.streams.shared(0, num_workers)  # refuses what they can't share
    with writing(run.path), joined(address, least_cpus=num_workers) as cluster, followed(run.path / LOG):
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        # What a worker prints is in the log already, and Ray would put it there once more.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
        use_gpu = cluster.get("GPU", 0) > 0
        _require_room(cluster, num_workers, use_gpu=use_gpu)
        mistakes = ray.remote(num_cpus=0)(_Mistakes).remote()
        job = {
            "path": run.path,
            "recipe": run.recipe,
            "record": run.record,
            "folder": Path.cwd(),
            "profile": profile,
            "mistakes": mistakes,
        }
        trainer = TorchTrainer(
            _work,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            # Both: what is said about a batch lies in the host's memory.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=TIMEOUT_S),
            run_config=RunConfig(
                name=RAY,
                storage_path=str(run.path.resolve()),
                failure_config=FailureConfig(max_failures=restarts),
            ),
        )
        try:
            trainer.fit()
        except SystemExit:  # how Ray answers Ctrl-C
            raise KeyboardInterrupt from None
        except TrainingFailedError as error:
            raise RunError(
                f"{run.path}: the workers failed {restarts + 1} times, at last with: {_last_line(error)}; see "
                f"{run.path / LOG}; `trainer run --run {run.path} --resume --num-workers {num_workers}` goes on "
                "from the newest checkpoint"
            ) from error
        finally:
            shutil.rmtree(run.path / RAY, ignore_errors=True)
        if mistake := ray.get(mistakes.first.remote()):
            raise mistake


class _Mistakes:
    """An actor that outlives the workers: the user's mistakes that they met."""

    def __init__(self) -> None:
        self._found: list[UserError] = []

    def add(self, mistake: UserError) -> None:
        self._found.append(mistake)

    def first(self) -> UserError | None:
        return self._found[0] if self._found else None


def _work(job: dict[str, Any]) -> None:
    """One worker's part in a run, from the newest checkpoint to the end."""
    import ray
    import torch

    mistakes = job["mistakes"]
    if ray.get(mistakes.first.remote()):  # Ray starts a new group after any failure
        return
    context = ray.train.get_context()
    ranks = Ranks(rank=context.get_world_rank(), num=context.get_world_size())
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    try:
        os.chdir(job["folder"])  # where the paths of the recipe and of the run's record begin
        with (job["path"] / LOG).open("a", buffering=1) as log, redirect_stderr(log):
            print(
                f"worker {ranks.rank} of {ranks.num}: process {os.getpid()} on {socket.gethostname()}",
                file=sys.stderr,
            )
            run = runs.reopen(job["path"], job["recipe"], job["record"]).shared(ranks)
            if ranks.is_first:
                fit.fit(run, profile=job["profile"], ranks=ranks)
            else:
                fit.follow(run, ranks)
    except (UserError, OSError) as error:
        mistake = error if isinstance(error, UserError) else RunError(f"worker {ranks.rank}: {error}")
        ray.get(mistakes.add.remote(mistake))
        raise


def _require_room(cluster: dict[str, float], num_workers: int, *, use_gpu: bool) -> None:
    kind, what = ("GPU", "GPUs") if use_gpu else ("CPU", "cores")
    if num_workers > cluster.get(kind, 0):
        raise ConfigError(
            f"--num-workers {num_workers}: a worker takes one of the {what}, of which there are "
            f"{cluster.get(kind, 0):g}"
        )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
