"""Where the time of a step goes: a trace of a few steps, and a table of them, under RUN/profile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

# The first steps fill caches and, with compile, build kernels.
SKIPPED, WARMUP, TRACED = 10, 2, 10
LINES = 25


class Profile:
    """Traces steps 13 to 22 of a run that is profiled, or of what is left of it; otherwise does nothing.

    RUN/profile/trace.json opens in Perfetto or chrome://tracing; summary.txt has what took longest.
    """

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        self._folder, self._written = folder, False
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = (
            profile(
                activities=activities,
                schedule=schedule(wait=SKIPPED, warmup=WARMUP, active=TRACED, repeat=1),
                on_trace_ready=self._write,
            )
            if wanted
            else None
        )

    def __enter__(self) -> Profile:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.stop()
            if not self._written:
                print(f"profile: none, the run has ended before step {SKIPPED + WARMUP + 1}", file=sys.stderr)

    def step(self) -> None:
        """A step has ended."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, found: profile) -> None:
        self._folder.mkdir(exist_ok=True)
        self._written = True
        found.export_chrome_trace(str(self._folder / "trace.json"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        (self._folder / "summary.txt").write_text(found.key_averages().table(sort_by=by, row_limit=LINES))
        print(f"profile: {self._folder}/trace.json and summary.txt, of {TRACED} steps", file=sys.stderr)
