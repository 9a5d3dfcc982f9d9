from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainer.profile import Profile


def test_trace_and_summary_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Profile(tmp_path / "profile", wanted=True) as profile:
        for _ in range(30):
            torch.ones(8, 8) @ torch.ones(8, 8)
            profile.step()
    assert json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    assert "aten::mm" in (tmp_path / "profile/summary.txt").read_text()
    assert "trace.json and summary.txt" in capsys.readouterr().err


def test_run_that_is_too_short_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Profile(tmp_path / "profile", wanted=True) as profile:
        for _ in range(5):
            profile.step()
    assert not (tmp_path / "profile").exists()
    assert "profile: none, the run has ended before step 13" in capsys.readouterr().err


def test_unwanted_profile_does_nothing(tmp_path: Path) -> None:
    with Profile(tmp_path / "profile", wanted=False) as profile:
        profile.step()
    assert not list(tmp_path.iterdir())
