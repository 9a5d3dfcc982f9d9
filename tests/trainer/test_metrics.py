from __future__ import annotations

import json
from pathlib import Path

from trainer.metrics import Metrics


def test_a_line_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, 0) as metrics:
        metrics.add({"kd.text": 1.0, "kd.image": 4.0}, 8)
        metrics.add({"kd.text": 2.0}, 8)
        metrics.write_step(2, 0.1)
        metrics.add({"kd.text": 5.0}, 8)
        metrics.write_step(3, 0.1)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["parts"] == {"kd.text": 1.5, "kd.image": 4.0}
    assert second["parts"] == {"kd.text": 5.0}
    assert second["step"] == 3


def test_lines_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with Metrics(path, 2):
        pass
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
