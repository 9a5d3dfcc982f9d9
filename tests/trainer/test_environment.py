from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from contract.errors import RunError
from trainer import environment


def test_environment_tells_code_packages_and_machine() -> None:
    found = environment.current()
    assert found["precept"]["version"]
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["num_threads"] == torch.get_num_threads()
    assert found["cpu"] or found["platform"]


def test_same_environment_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    environment.record(path)
    environment.record(path)
    assert len(json.loads(path.read_text())) == 1


def test_resumed_elsewhere_is_said_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "environment.json"
    environment.record(path)
    (known,) = json.loads(path.read_text())
    path.write_text(json.dumps([known | {"num_threads": 99}]))
    environment.record(path)
    said = capsys.readouterr().err
    assert f"warning: resumed in another environment: num_threads: {known['num_threads']}, not 99" in said
    assert [one["num_threads"] for one in json.loads(path.read_text())] == [99, known["num_threads"]]


def test_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.write_text("[{")
    with pytest.raises(RunError, match=r"environment\.json: damaged"):
        environment.record(path)
