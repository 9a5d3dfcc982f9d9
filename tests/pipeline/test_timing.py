"""Where the time of a run goes."""

from __future__ import annotations

import time

import pytest

from pipeline.timing import Stopwatch, Timing


@pytest.mark.parametrize(
    ("timing", "expected"),
    [
        (Timing(teacher_s=95, waiting_s=4, blocked_s=1, reading_s=500, decoding_s=500), "the teacher"),
        (Timing(teacher_s=50, waiting_s=50, reading_s=80, decoding_s=20), "reading"),
        (Timing(teacher_s=50, waiting_s=50, reading_s=20, decoding_s=80), "decoding"),
        (Timing(teacher_s=50, waiting_s=10, blocked_s=40, reading_s=80, decoding_s=20), "writing"),
    ],
)
def test_a_run_is_bound_by_what_the_teacher_waits_for(timing: Timing, expected: str) -> None:
    assert timing.bound_by == expected


def test_shares_are_told_of_the_teachers_time() -> None:
    timing = Timing(teacher_s=3, waiting_s=6, blocked_s=1, decoding_s=12)
    assert timing.describe() == "bound by decoding (teacher 30%, waiting for inputs 60%, for writing 10%)"


def test_timings_of_workers_add_up() -> None:
    total = Timing(teacher_s=1)
    total += Timing(teacher_s=2, waiting_s=0.5)
    assert total == Timing(teacher_s=3, waiting_s=0.5)


def test_a_stopwatch_gives_what_passed_since_the_last_time() -> None:
    watch = Stopwatch()
    with watch.on("waiting_s"):
        time.sleep(0.01)
    with pytest.raises(ValueError, match="anything"), watch.on("teacher_s"):
        raise ValueError("anything")
    taken = watch.take()
    assert taken.waiting_s >= 0.01
    assert taken.teacher_s > 0
    assert watch.take() == Timing()
