from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contract import config
from contract.errors import RunError, one_line
from contract.store import TargetStore
from trainer.cli import app

NewStore = Callable[..., TargetStore]


def trainer(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(config.SHIPPED), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_names_the_options(tmp_path: Path) -> None:
    done = trainer("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--config", "--store", "--run", "--resume", "--set"))


def test_run_trains_and_prints_its_folder(
    tmp_path: Path, new_store: NewStore, recipe_file: Callable[..., Path]
) -> None:
    new_store(tmp_path / "stores/tiny.zarr")
    done = trainer("run", "--config", str(recipe_file()), "--set", "epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/tiny-tiny-001\n"
    assert "store: stores/tiny.zarr" in done.stderr
    assert re.search(r"val rsum [0-9.]+ \(best\): tiny/image-to-text ", done.stderr)
    assert json.loads((tmp_path / "runs/tiny-tiny-001/run.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: no store under stores/"),
        (("--config", "shrew"), "error: no configs/trainer/shrew.yaml; there are: avid, "),
        (("--set", "epoch=3"), "unknown key `epoch`; did you mean `epochs`?"),
        (("--set", "epochs=many"), "`epochs`: "),
        (("--store", "nowhere.zarr"), "error: nowhere.zarr: no target store there"),
        (("--resume",), "error: no unfinished run under runs/"),
    ],
)
def test_mistake_is_one_line_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught, one_line():
        app(["run", *arguments])
    assert caught.value.code not in (0, None)
    stderr = capsys.readouterr().err
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_same_resuming_command_begins_continues_and_finds_the_run_finished(
    tmp_path: Path, new_store: NewStore, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new_store(Path("stores/tiny.zarr"))
    options = ["run", "--config", str(recipe_file({"epochs": 1})), "--run", "mine"]
    assert CliRunner().invoke(app, [*options, "--resume"]).exit_code == 0
    assert json.loads(Path("mine/run.json").read_text())["finished"]
    again = CliRunner().invoke(app, [*options, "--resume"])
    assert again.exit_code == 0
    assert "mine is finished" in again.stderr
    with pytest.raises(RunError, match="mine exists; continue it with --resume"):
        CliRunner().invoke(app, options, catch_exceptions=False)
