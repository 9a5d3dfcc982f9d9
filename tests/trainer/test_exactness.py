"""What must be the same to the last bit, and what may differ in the last ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from contract import config
from contract.errors import ConfigError, RunError
from contract.store import TargetStore
from trainer import checkpoint, runs
from trainer.batch import Batch
from trainer.device import Device
from trainer.fit import fit
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.state import State
from trainer.step import take_step
from trainer.streams import Streams

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

TIMINGS = ("samples_per_s", "wait_share", "memory_bytes")
SHORT: dict[str, Any] = {"epochs": 2, "checkpoints": {"every_steps": 3, "keep": 3}, "ema": {"decay": 0.9}}
KD: dict[str, Any] = {
    "objectives": {"kd": {"kind": "kd_kl"}},
    "streams": [{"pair": "image-text"}],
    "student.dropout": 0.0,
    "student.adapters": {
        "image": {"kind": "mlp", "dropout": 0.0},
        "text": {"kind": "transformer", "num_heads": 2, "dropout": 0.0},
    },
}
DROPPING: dict[str, Any] = {
    "student.dropout": 0.3,
    "student.adapters": {
        "image": {"kind": "transformer", "num_heads": 2, "depth": 2, "dropout": 0.3, "token_dropout": 0.5},
        "text": {"kind": "transformer", "num_heads": 2, "dropout": 0.3},
        "audio": {"kind": "mlp", "dropout": 0.3},
    },
}


def content(run: Path) -> dict[str, Any]:
    """Every file of a run as bytes, of metrics without what depends on the clock."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    record = json.loads(files.pop("run.json")) | {"created": ""}
    del files["environment.json"]
    return files | {
        "lines": [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines],
        "record": record,
    }


def tensors(run: runs.Run) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.checkpoints.all()[0])[0]


def trained(recipe: Recipe, store: TargetStore, path: Path) -> runs.Run:
    run = runs.begin(recipe, [store.path], path)
    fit(run)
    return run


@pytest.fixture(scope="module")
def finished(recipe: Make, store: TargetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is finished, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        return trained(recipe(SHORT), store, Path("run")).path.absolute()


@pytest.fixture
def whole(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A run that is finished, at `run`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    return runs.resume(Path("run"), [])


def test_same_seed_gives_the_same_bytes(
    recipe: Make, store: TargetStore, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        monkeypatch.chdir(tmp_path / str(seed))
        found.append(content(trained(recipe(SHORT | {"seed": seed}), store, Path("run")).path))
    assert found[0] == content(finished)
    assert found[1] != found[0]


def test_run_is_done_again_from_its_own_config(whole: runs.Run, store: TargetStore) -> None:
    expected = content(whole.path)
    own = config.load(whole.path / "config.yaml", Recipe)
    shutil.move(whole.path, "before")
    assert content(trained(own, store, Path("run")).path) == expected


@pytest.mark.parametrize("kind", ["cut short", "a bit flipped", "empty"])
def test_damaged_newest_checkpoint_is_said_and_the_one_before_it_taken(
    whole: runs.Run, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    expected = content(whole.path)
    whole.record["finished"] = False
    (whole.path / "run.json").write_text(json.dumps(whole.record, indent=2) + "\n")
    newest, before, *_ = whole.checkpoints.all()
    data = bytearray(newest.read_bytes())
    if kind == "a bit flipped":
        data[-1000] ^= 1
    newest.write_bytes({"cut short": data[: len(data) // 2], "a bit flipped": data, "empty": b""}[kind])
    capsys.readouterr()
    fit(runs.resume(whole.path, []))
    said = capsys.readouterr().err
    assert f"{newest}: not a readable checkpoint: " in said
    assert f"going back to {before.name}" in said
    assert content(whole.path) == expected


def test_flipped_bit_in_any_part_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.safetensors"
    checkpoint.save(path, {"weight": torch.arange(10.0), "count": torch.tensor(3)}, {"step": 1, "best": 0.25})
    data = path.read_bytes()
    missed = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            found, state = checkpoint.load(path)
        except RunError:
            continue
        if state != {"step": 1, "best": 0.25} or found["weight"].tolist() != list(range(10)):
            missed.append(place)
    assert not missed


def test_other_checkpoints_may_be_kept_by_a_resumed_run_but_nothing_else_changed(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    begun = runs.begin(recipe(SHORT), [store.path], tmp_path / "run")
    begun.create()
    resumed = runs.resume(begun.path, [], None, ["checkpoints.keep=1", "checkpoints.every_steps=1", "logs=[csv]"])
    fit(resumed)
    assert len(resumed.checkpoints.all()) == 1
    assert (resumed.path / "metrics.csv").exists()
    kept = config.load(resumed.path / "config.yaml", Recipe)
    assert kept == resumed.recipe
    assert kept.checkpoints.keep == 1
    with pytest.raises(ConfigError, match=r"begun with another recipe: seed: 3, not 0"):
        runs.resume(begun.path, [], None, ["seed=3"])


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path: Path) -> None:
    kept = checkpoint.Kept(folder=tmp_path / "checkpoints", num=2)
    kept.save(1, {"weight": torch.zeros(1)}, {})
    (kept.folder / "step-00000002.safetensors.partial").write_bytes(b"half")
    assert kept.all() == [kept.path(1)]
    kept.save(3, {"weight": torch.zeros(1)}, {})
    assert sorted(file.name for file in kept.folder.iterdir()) == [kept.path(1).name, kept.path(3).name]


def test_activations_that_are_computed_again_give_the_same_bits(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    found = [
        tensors(trained(recipe(DROPPING | {"epochs": 2, "compute": {"checkpoint_activations": on}}), store, path))
        for on, path in ((False, tmp_path / "kept"), (True, tmp_path / "again"))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_student_trains_nearly_the_same(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    off, compiled = (
        content(trained(recipe(KD | {"epochs": 1, "compute": {"compile": mode}}), store, tmp_path / mode).path)
        for mode in ("off", "default")
    )
    assert [line["parts"] for line in compiled["lines"] if "parts" in line] == [
        pytest.approx(line["parts"], rel=1e-3) for line in off["lines"] if "parts" in line
    ]
    assert compiled["best.safetensors"] != off["best.safetensors"]


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_run_in_another_precision_is_near_float32_and_resumes_exactly(
    recipe: Make, store: TargetStore, tmp_path: Path, precision: str
) -> None:
    one = trained(recipe(KD | {"epochs": 2, "precision": precision}), store, tmp_path / precision)
    exact = trained(recipe(KD | {"epochs": 2}), store, tmp_path / "float32")
    weights, expected = tensors(one), tensors(exact)
    for name in expected:
        if name.startswith("student."):
            torch.testing.assert_close(weights[name], expected[name], rtol=0.1, atol=0.02)
    scalars = checkpoint.load(one.checkpoints.all()[0])[1]
    assert bool(scalars["scaler"]) == (precision == "float16")
    newest = one.checkpoints.all()[0]
    before = newest.read_bytes()
    newest.unlink()
    one.record["finished"] = False
    (one.path / "run.json").write_text(json.dumps(one.record))
    fit(runs.resume(one.path, []))
    assert newest.read_bytes() == before


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_are_one_large_batch_where_no_negatives_are_compared(
    recipe: Make, store: TargetStore, accumulate: int
) -> None:
    found = []
    for times, size in ((accumulate, 6), (1, 6 * accumulate)):
        made = recipe(KD | {"accumulate": times, "batch_size": size, "gradient_clip": 0.1})
        streams = resolve(made, [store])
        state = State(made, streams, Device(name="cpu", precision="float32"))
        state.student.train()
        step = take_step(state, made, iter(Loader(streams, 0, times, "cpu")), 1e-3)
        gradients = [parameter.grad for parameter in state.student.parameters()]
        found.append((step.parts, step.num_rows, gradients))
    (parts, num_rows, gradients), (expected, expected_rows, expected_gradients) = found
    assert parts == pytest.approx(expected, abs=1e-6)
    assert num_rows == expected_rows == 6 * accumulate
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_is_asked_to_stop_keeps_its_last_step_and_ends_in_the_same_bytes(
    recipe: Make,
    store: TargetStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: runs.Run,
    number: signal.Signals,
) -> None:
    expected = content(whole.path)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")

    def asking(streams: Streams, start: int, stop: int, device: str) -> Iterator[Batch]:
        for count, batch in enumerate(Loader(streams, start, stop, device)):
            if count == 4:
                os.kill(os.getpid(), number)
            yield batch

    run = runs.begin(recipe(SHORT), [store.path], Path("run"))
    with monkeypatch.context() as patch:
        patch.setattr("trainer.fit.Loader", asking)
        with pytest.raises(
            RunError, match="interrupted after step 5, which is kept; `trainer run --run run --resume`"
        ):
            fit(run)
    assert run.checkpoints.all()[0] == run.checkpoints.path(5)
    fit(runs.resume(run.path, []))
    found = content(run.path)
    # Of the three that are kept, the oldest is now the one that was asked for.
    del found["checkpoints/step-00000005.safetensors"], expected["checkpoints/step-00000004.safetensors"]
    assert found == expected
