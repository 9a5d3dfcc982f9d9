from __future__ import annotations

import json
from pathlib import Path

from trainer.metrics import Metrics
from trainer.step import Step


def step(parts: dict[str, float]) -> Step:
    return Step(parts=parts, num_rows=8, wait_s=0.0)


def test_a_line_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, 0, {}) as metrics:
        metrics.add(step({"kd.text": 1.0, "kd.image": 4.0}))
        metrics.add(step({"kd.text": 2.0}))
        metrics.write_step(2, 0.1, 1000)
        metrics.add(step({"kd.text": 5.0}))
        metrics.write_step(3, 0.1, 1000)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["parts"] == {"kd.text": 1.5, "kd.image": 4.0}
    assert second["parts"] == {"kd.text": 5.0}
    assert second["step"] == 3


def test_lines_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with Metrics(path, 2, {}):
        pass
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_steps_that_no_line_has_yet_are_in_the_next_ones_mean(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sums: dict[str, list[float]] = {}
    with Metrics(path, 0, sums) as metrics:
        metrics.add(step({"kd.text": 1.0}))
    kept = json.loads(json.dumps(sums))  # in a checkpoint
    with Metrics(path, 1, kept) as metrics:
        metrics.add(step({"kd.text": 3.0}))
        metrics.write_step(2, 0.1, 1000)
    (line,) = (json.loads(line) for line in path.read_text().splitlines())
    assert line["parts"] == {"kd.text": 2.0}


def test_teachers_stand_first_and_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        with Metrics(path, 0, {}) as metrics:
            metrics.write_teachers({"image/logits": 0.9})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "teacher_accuracy": {"image/logits": 0.9}}
    ]
