"""`--batch-size`: given, or found by trying."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.batch_size import LARGEST, largest


class Slow:
    """Takes `call_s` a call and `view_s` a view, of which more than `limit` do not fit."""

    def __init__(self, *, call_s: float = 0.0, view_s: float = 0.0, limit: int = 1 << 30) -> None:
        self.call_s, self.view_s, self.limit = call_s, view_s, limit

    def __call__(self, views: Sequence[Any]) -> dict[str, Any]:
        if len(views) > self.limit:
            raise MemoryError
        time.sleep(self.call_s + self.view_s * len(views))
        return {}

    def constants(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("limit", "expected"), [(0, 1), (1, 1), (5, 4), (16, 16)])
def test_it_is_the_largest_power_of_two_that_fits(limit: int, expected: int) -> None:
    for usual in (1, 64):
        assert largest(Slow(call_s=0.01, limit=limit), ["a", "b", "c"], "cpu", usual) == expected


def test_a_cpu_gets_the_usual_batch_and_more_only_where_that_is_as_fast() -> None:
    class Overdone(Slow):
        """The slower by the view, the more there are beyond eight."""

        def __call__(self, views: Sequence[Any]) -> dict[str, Any]:
            time.sleep(0.002 * len(views) * max(1, len(views) / 8))
            return {}

    assert largest(Overdone(), ["a"], "cpu", 1) == 8
    assert largest(Overdone(), ["a"], "cpu", 20) == 16


def test_there_is_an_end_to_it() -> None:
    assert largest(Slow(call_s=0.005), ["a"], "cpu", 1) == LARGEST


def test_other_errors_of_a_model_go_through() -> None:
    class Broken(Slow):
        def __call__(self, views: Sequence[Any]) -> dict[str, Any]:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        largest(Broken(), ["a"], "cpu", 64)


def test_auto_is_found_once_and_kept_by_what_was_begun(project) -> None:
    outcome = project.call(*project.arguments("--batch-size", "auto"))
    assert outcome.exit_code == 0, outcome.err
    sizes = {key: fieldset.batch_size for key, fieldset in project.opened().fieldsets.items()}
    for key, size in sizes.items():
        assert f"{key}: batches of {size} views" in outcome.err
        assert size & (size - 1) == 0
    # As a killed run leaves it: the size is not looked for again.
    shutil.rmtree(project.store / "precept/commits/image")
    outcome = project.call(*project.arguments("--batch-size", "auto"))
    assert outcome.exit_code == 0, outcome.err
    assert "batches of" not in outcome.err
    assert {key: fieldset.batch_size for key, fieldset in project.opened().fieldsets.items()} == sizes
    assert project.precompute("--batch-size", "auto").endswith("was complete already\n")
    assert project.call("verify", "stores/tiny.zarr").exit_code == 0


def test_a_number_is_that_of_every_encoder(project) -> None:
    project.precompute("--batch-size", "7")
    assert [fieldset.batch_size for fieldset in project.opened().fieldsets.values()] == [7, 7]
    assert project.opened().fieldsets["image/teacher"].provenance["encoder"]["batch_size"] == 7
    message = project.error_of(*project.arguments("--batch-size", "8"))
    assert "was made by another encoder or setting: batch_size: 7, not 8" in message


@pytest.mark.parametrize("wrong", ["0", "-1", "1.5", "many", ""])
def test_other_sizes_are_one_line(project, wrong: str) -> None:
    for command in ("precompute", "plan"):
        message = project.error_of(command, *project.arguments()[1:5], "--batch-size", wrong)
        assert f"--batch-size {wrong}: expected a number from 1 up, or auto" in message
    assert not project.store.exists()


def test_a_dataset_of_one_row_has_a_largest_batch(project) -> None:
    project.describe([0])
    project.precompute("--batch-size", "auto", "--views", "2")
    assert project.opened().load("image/teacher/logits", [0], views=2).any()
