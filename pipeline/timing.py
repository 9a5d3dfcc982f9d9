"""Where the time of a run goes, and what it is bound by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from time import perf_counter

# A teacher that is idle for less of the time than this is what the run waits for.
IDLE = 0.1


@dataclass(kw_only=True)
class Timing:
    """Seconds of one worker, or of several, summed.

    The teacher's thread computes (`teacher_s`), waits for decoded inputs (`waiting_s`) or for the shard before to
    be written (`blocked_s`). Beside it, `reading_s` and `decoding_s` are those of the decoders' threads.
    """

    teacher_s: float = 0.0
    waiting_s: float = 0.0
    blocked_s: float = 0.0
    reading_s: float = 0.0
    decoding_s: float = 0.0

    def __iadd__(self, other: Timing) -> Timing:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        return self

    @property
    def elapsed_s(self) -> float:
        """Seconds of the teacher's thread."""
        return self.teacher_s + self.waiting_s + self.blocked_s

    @property
    def bound_by(self) -> str:
        """The part that would have to be faster for the run to be."""
        idle_s = self.waiting_s + self.blocked_s
        if idle_s < IDLE * self.elapsed_s:
            return "the teacher"
        if self.blocked_s > self.waiting_s:
            return "writing"
        return "reading" if self.reading_s > self.decoding_s else "decoding"

    def describe(self) -> str:
        """A line's part: what it is bound by, and the shares that say so."""
        total_s = self.elapsed_s or 1.0
        shares = [
            (self.teacher_s, "teacher"),
            (self.waiting_s, "waiting for inputs"),
            (self.blocked_s, "for writing"),
        ]
        return f"bound by {self.bound_by} ({', '.join(f'{name} {s / total_s:.0%}' for s, name in shares)})"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What happened since the last time: rows that the encoder has seen, where time went, what is to be said."""

    num_rows: int = 0
    timing: Timing = field(default_factory=Timing)
    notes: tuple[str, ...] = ()


@dataclass
class Stopwatch:
    """Adds what passes inside `with` to a figure of a `Timing`."""

    timing: Timing = field(default_factory=Timing)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Time the block."""
        started = perf_counter()
        try:
            yield
        finally:
            setattr(self.timing, name, getattr(self.timing, name) + perf_counter() - started)

    def take(self) -> Timing:
        """What was added since the last time."""
        taken, self.timing = self.timing, Timing()
        return taken
