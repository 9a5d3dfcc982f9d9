from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contract.errors import ConfigError, RunError
from trainer.charts import Curve, drawn
from trainer.show import show


def make_run(path: Path, lines: list[dict[str, Any]], *, tail: str = "") -> Path:
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"recipe": "tiny", "finished": False}))
    (path / "config.yaml").write_text("validation:\n  metric: rsum\n")
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines: list[dict[str, Any]] = [{"step": 0, "teacher_accuracy": {"image/logits": 0.9}}]
    for step in range(1, 41):
        lines.append({"step": step, "parts": {"kd.image": 2.0 / step}, "learning_rate": 0.1, "samples_per_s": 9.0})
    lines.append({"step": 40, "epoch": 2, "validation": {"rsum": 120.0, "tiny/image/spread": 0.7}, "score": 120.0})
    return make_run(tmp_path / "one", lines, tail='{"step": 41, "par')


def curve(values: list[float]) -> Curve:
    return Curve(run="one", steps=np.arange(len(values), dtype=float), values=np.array(values, dtype=float))


def test_run_is_shown_with_how_far_it_is_and_a_chart_of_each_figure(run: Path) -> None:
    text = "\n".join(show([run]))
    assert f"{run}: recipe tiny, step 40, not finished, rsum 120 in epoch 2, teacher image/logits 90.0%" in text
    titles = [
        line.strip() for line in text.splitlines() if line.strip() in ("score", "parts/kd.image", "learning_rate")
    ]
    assert titles == ["score", "parts/kd.image", "learning_rate"]
    assert f"- {run}: last 0.05, least 0.05, most 2" in text
    assert "step 40" in text


def test_figures_are_chosen_by_a_part_of_their_names(run: Path) -> None:
    text = "\n".join(show([run], ["spread"]))
    assert "validation/tiny/image/spread" in text
    assert "kd.image" not in text
    with pytest.raises(
        ConfigError, match=r"--figure loss: no figure of these runs; there are: teacher_accuracy/image"
    ):
        list(show([run], ["loss"]))


def test_runs_are_drawn_over_one_another_and_into_one_picture(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = make_run(tmp_path / "other", [{"step": 80, "parts": {"kd.image": float("nan")}, "learning_rate": 0.2}])
    text = "\n".join(show([run, other], (), tmp_path / "charts/all.png"))
    assert f"{other}: last 0.2" in text
    assert f"{other}: last nan" not in text
    with Image.open(tmp_path / "charts/all.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no run there"):
        list(show([tmp_path / "nowhere"]))
    with pytest.raises(RunError, match="nothing measured yet"):
        list(show([make_run(tmp_path / "new", [])]))
    damaged = make_run(tmp_path / "damaged", [], tail='{"st\n{"step": 1}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl: line 1 is damaged"):
        list(show([damaged]))


def test_falling_curve_begins_at_the_top_and_ends_at_the_bottom() -> None:
    ((first, last),) = drawn([curve([3.0, 2.0, 1.0, 0.0])], 2, 1, coloured=False)
    top_left, bottom_left, top_right, bottom_right = 0x01, 0x40, 0x08, 0x80
    assert ord(first) & top_left
    assert not ord(first) & bottom_left
    assert ord(last) & bottom_right
    assert not ord(last) & top_right


def test_constant_curve_and_single_point_are_drawn() -> None:
    assert any(sign != "\u2800" for sign in "".join(drawn([curve([1.0, 1.0])], 4, 2, coloured=False)))
    assert sum(sign != "\u2800" for sign in "".join(drawn([curve([1.0])], 4, 2, coloured=False))) == 1


def test_peak_between_two_columns_is_not_lost() -> None:
    values = [0.0] * 1000
    values[501] = 1.0
    lines = drawn([curve(values)], 10, 4, coloured=False)
    assert any(sign != "\u2800" for sign in lines[0])


def test_each_curve_has_a_colour() -> None:
    text = "".join(drawn([curve([0.0, 0.0]), curve([1.0, 1.0])], 2, 2, coloured=True))
    assert "\x1b[34m" in text
    assert "\x1b[33m" in text
