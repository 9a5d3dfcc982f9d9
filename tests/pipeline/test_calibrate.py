"""What a run is going to take, and what it then took."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import plan
from pipeline.calibrate import Calibration, duration, table

PLAN = ("plan", "--dataset", "tiny.yaml", "--config", "encoders.yaml", "--calibrate")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("PRECEPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lines(project: Any, *more: str) -> list[str]:
    outcome = project.call(*PLAN, *more)
    assert outcome.exit_code == 0, outcome.err
    return outcome.out.splitlines()


def test_rows_a_second_hours_and_bytes_are_printed_and_nothing_is_left_behind(scenes) -> None:
    scenes.call("plan", *PLAN[1:-1])  # draws the scenes
    before = {file for file in scenes.folder.rglob("*") if "cache" not in file.parts}
    printed = lines(scenes)
    for key, num_rows in (("image/teacher", 90), ("text/tokens", 1350), ("audio/patches", 90)):
        (line,) = [line for line in printed if line.startswith(f"{key}: ")]
        found = re.fullmatch(
            rf"{key}: ([\d,.]+) rows/s, bound by [\w ]+: ([\d.]+) s for {num_rows:,} rows, [\d.]+ MB", line
        )
        assert found, line
        assert float(found[1].replace(",", "")) > 0
    assert re.fullmatch(
        r"on this machine \((\d+ CPU cores?|.*)\): [\d.]+ s, [\d.e-]+ GPU-hours.*, [\d.]+ MB", printed[-1]
    )
    assert {file for file in scenes.folder.rglob("*") if "cache" not in file.parts} == before


def test_the_run_says_what_was_predicted_and_what_it_took(project) -> None:
    assert "predicted" not in project.precompute("--store", "stores/before.zarr")
    lines(project)
    for store in ("stores/one.zarr", "stores/other.zarr"):
        out = project.precompute("--store", store)
        for key in ("image/teacher", "text/tokens"):
            assert re.search(rf"{key}: predicted [\d.]+ s on .+, took [\d.]+ s, [\d.]+ times that\n", out), out
    # Of another dataset, or with other batches, nothing is known.
    assert "predicted" not in project.precompute("--store", "stores/third.zarr", "--batch-size", "3")
    described = (project.folder / "tiny.yaml").read_text()
    (project.folder / "tiny.yaml").write_text(described.replace("name: tiny", "name: other"))
    assert "predicted" not in project.precompute("--store", "stores/fourth.zarr", "--data-root", "data/tiny")


def test_a_prediction_that_can_not_be_read_is_none(project, cache: Path) -> None:
    lines(project)
    for file in (cache / "calibrations").iterdir():
        file.write_text('{"rows_per_s": 1}')
    assert "predicted" not in project.precompute()


def test_several_devices_are_reckoned_with(project) -> None:
    printed = lines(project, "--gpus", "8")
    here, there = printed[-2:]
    assert here.startswith("on this machine (")
    assert re.match(r"on 8 (GPUs|machines, without a GPU), each as fast as this one \(.+\): ", there)
    seconds = [float(re.search(r"\): ([\d.]+) s", line)[1]) for line in (here, there)]
    assert seconds[1] == pytest.approx(seconds[0] / 8, abs=0.1)


def test_gpus_are_told_by_name_and_in_hours(project) -> None:
    settings = project.settings()
    fieldset = plan.fieldset("image", "teacher", settings.encoders.image["teacher"], settings.views, "")
    task = plan.Task(
        fieldset=fieldset,
        encoder=settings.encoders.image["teacher"],
        views=settings.views,
        num_rows=7_200_000,
        num_shards=1,
        missing=(range(7_200_000),),
    )
    found = Calibration(rows_per_s=200.0, device="NVIDIA H200", is_gpu=True, bound_by="decoding")
    size = plan.gigabytes(task.missing_bytes)
    assert table([task], [found], 4).splitlines() == [
        f"image/teacher: 200.0 rows/s, bound by decoding: 10.0 h for 7,200,000 rows, {size}",
        f"on this machine (NVIDIA H200): 10.0 h, 10 GPU-hours, {size}",
        f"on 4 GPUs, each as fast as this one (NVIDIA H200): 2.5 h, 10 GPU-hours, {size}",
    ]
    other = replace(found, device="2 CPU cores", is_gpu=False)
    hours = "0 GPU-hours, as there is no GPU here"
    assert table([task], [other], 4).splitlines()[1:] == [
        f"on this machine (2 CPU cores): 10.0 h, {hours}, {size}",
        f"on 4 machines, without a GPU, each as fast as this one (2 CPU cores): 2.5 h, {hours}, {size}",
    ]


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.04, 119, 120, 7199, 7200, 36_000_000)] == [
        "0.0 s",
        "119.0 s",
        "2.0 min",
        "120.0 min",
        "2.0 h",
        "10,000.0 h",
    ]


def test_a_store_that_is_complete_has_nothing_left(project) -> None:
    project.precompute()
    assert lines(project)[-1] == "nothing is left to compute"


def test_only_what_is_missing_is_reckoned_with(project) -> None:
    project.describe(range(20))
    project.precompute()
    project.describe(range(30))
    printed = lines(project)
    assert any("for 10 rows" in line for line in printed)
    assert any("for 20 rows" in line for line in printed)
    assert project.opened().manifest.num_rows("image") == 20


def test_encodings_with_constants_and_views_are_calibrated_too(project) -> None:
    int8 = ("--set", "encoders.image.teacher.encodings.patch_embeddings.kind=int8", "--views", "2")
    lines(project, *int8)
    assert "image/teacher: predicted" in project.precompute(*int8)


def test_inputs_of_which_none_can_be_decoded_are_one_line(project) -> None:
    for file in (project.data / "images").glob("*.png"):
        file.write_bytes(b"no image")
    message = project.error_of(*PLAN)
    assert "image/teacher: none of 30 inputs under" in message
    assert "could be decoded, and a calibration needs some" in message
    assert not list(project.folder.glob(".calibration-*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*PLAN[:-1], "--gpus", "2"), "--gpus 2: only --calibrate says how long a run takes; add it"),
        ((*PLAN, "--gpus", "0"), "Invalid value for '--gpus'"),
        ((*PLAN, "--batch-size", "auto"), "--batch-size auto: a plan tries none"),
    ],
)
def test_mistakes_are_one_line_each(project, arguments: tuple[str, ...], told: str) -> None:
    assert told in project.error_of(*arguments)
