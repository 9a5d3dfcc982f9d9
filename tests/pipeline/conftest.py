"""Small datasets on disk, small teachers of real architectures, and the command line over them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from contract import config
from contract.store import TargetStore
from pipeline.__main__ import main
from pipeline.settings import Precompute

TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 7}
# So many tokens that a row is over 16 kB even of int8: 512 rows make a shard, of two views each 256.
LONG_VIT = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 64,
    "depth": 1,
    "num_heads": 1,
    "mlp_ratio": 1,
    "num_classes": 7,
}


class Outcome(NamedTuple):
    """What a command leaves."""

    exit_code: int
    out: str
    err: str


class Project:
    """A folder with a dataset `tiny`, its data manifest `tiny.yaml` and the configuration `encoders.yaml`."""

    def __init__(self, folder: Path, source: dict[str, Any]) -> None:
        self.folder, self.data, self.store = folder, folder / "data/tiny", folder / "stores/tiny.zarr"
        self.encoders: dict[str, Any] = {}
        about = {"name": "tiny", "title": "Tiny", "homepage": "none", "licence": "none"}
        self.write("tiny.yaml", about | {"source": source})

    def configure(self, **more: Any) -> None:
        """Write `encoders.yaml`: noise has no meaning, so the gate would refuse a teacher of it, and rightly so."""
        self.write("encoders.yaml", {"encoders": self.encoders, "gate": {"num_samples": 0}} | more)

    def describe(self, numbers: Sequence[int]) -> None:
        """Make these photographs, in this order, the dataset: two captions each, most of them for training."""
        entries = [
            {
                "filename": f"{number}.png",
                "split": {8: "val", 9: "test"}.get(number % 10, "train"),
                "sentences": [{"raw": f"photograph {number} with noise {k}"} for k in range(2)],
            }
            for number in numbers
        ]
        (self.data / "captions.json").write_text(json.dumps({"images": entries}))

    def write(self, name: str, tree: dict[str, Any]) -> None:
        """A YAML file in the folder."""
        with (self.folder / name).open("w") as file:
            YAML(typ="safe").dump(tree, file)

    def arguments(self, *more: str) -> list[str]:
        """The command line of a run, after `pipeline`."""
        return ["precompute", "--dataset", "tiny.yaml", "--config", "encoders.yaml", "--engine", "local", *more]

    def call(self, *arguments: str) -> Outcome:
        """`pipeline ARGUMENTS` in the project's folder, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr("sys.argv", ["pipeline", *arguments])
            with pytest.raises(SystemExit) as left:
                main()
        return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())

    def precompute(self, *more: str) -> str:
        """What a run that succeeds prints."""
        outcome = self.call(*self.arguments(*more))
        assert outcome.exit_code == 0, outcome.err
        return outcome.out

    def error_of(self, *arguments: str) -> str:
        """The one line that a failing command leaves."""
        exit_code, _, err = self.call(*arguments)
        assert exit_code != 0
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert err.splitlines()[-1] == lines[0]
        return lines[0]

    def run_until(self, is_time: Callable[[], bool]) -> None:
        """A run in a process of its own, killed as soon as it is time."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *self.arguments()],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not is_time():
            assert process.poll() is None, "it ended before it was time"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL

    def settings(self) -> Precompute:
        """The configuration, as the command line reads it."""
        return config.load(self.folder / "encoders.yaml", Precompute)

    def opened(self) -> TargetStore:
        """The store."""
        return TargetStore.open(self.store)

    def keep(self, name: str) -> None:
        """Move the store aside, under that name."""
        self.store.rename(self.folder / name)

    def restore(self, name: str = "whole.zarr") -> dict[str, bytes]:
        """Put a copy of a store that was kept in its place; returns its content."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.folder / name, self.store)
        return self.content()

    def content(self) -> dict[str, bytes]:
        """Every file of the store."""
        files = self.store.rglob("*")
        return {str(file.relative_to(self.store)): file.read_bytes() for file in files if file.is_file()}


def of_noise(folder: Path, teacher: dict[str, Any], numbers: Sequence[int]) -> Project:
    """A project of noise photographs with two captions each, and of a teacher that nobody has trained."""
    layout = {"annotations": ["captions.json"], "images": ["images"], "layout": "captions.json and images/"}
    project = Project(folder, {"kind": "karpathy", **layout})
    for number in numbers:
        write_photograph(project.data / f"images/{number}.png", number)
    project.describe(numbers)
    write_weights(folder / "teacher.safetensors", teacher)
    model = {"kind": "timm", "model": "vit_tiny_patch16_224", "model_args": teacher, "batch_size": 40}
    project.encoders = {
        "image": {"teacher": model | {"checkpoint": str(folder / "teacher.safetensors")}},
        "text": {"tokens": {"kind": "ngrams", "max_length": 8, "width": 16}},
    }
    project.configure()
    return project


def write_photograph(path: Path, number: int) -> None:
    """Noise, of which no two photographs have the same and few the same size."""
    rng = np.random.default_rng(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (32 + number % 7, 32 + number % 5)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, compress_level=1)


def write_weights(path: Path, args: dict[str, Any], seed: int = 0) -> None:
    """Weights that nobody has trained."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **args)
    save_file(model.state_dict(), path)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Thirty photographs."""
    return of_noise(tmp_path, TINY_VIT, range(30))


@pytest.fixture(scope="session")
def make_project() -> Callable[[Path, int], Project]:
    """Makes one of that many photographs, in a folder."""
    return lambda folder, num_images: of_noise(folder, TINY_VIT, range(num_images))


@pytest.fixture
def spoil() -> Callable[[Project, str, float], None]:
    """Makes a value of every class, or of every unit, of the teacher's weights another one."""

    def change(project: Project, name: str, value: float) -> None:
        weights = load_file(project.folder / "teacher.safetensors")
        weights[name][2] = value
        save_file(weights, project.folder / "teacher.safetensors")

    return change


@pytest.fixture
def scenes(tmp_path: Path) -> Project:
    """Ninety scenes with labels, captions and sounds, and the teacher that knows them."""
    project = Project(tmp_path, {"kind": "scenes", "num_train": 70, "num_val": 10, "num_test": 10})
    shutil.copy(config.shipped("configs/pipeline", "scenes"), tmp_path / "encoders.yaml")
    return project


NUM_LARGE = 600


@pytest.fixture(scope="session")
def large_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose images make three shards, of int8 and with a view each; some photographs can't be decoded.

    Its store, computed without interruption, is kept as `whole.zarr`.
    """
    project = of_noise(tmp_path_factory.mktemp("large"), LONG_VIT, range(NUM_LARGE + 100))
    (project.data / "images/5.png").write_bytes(b"no image")
    (project.data / "images/300.png").unlink()
    (project.data / "images/650.png").write_bytes(b"no image either")
    project.encoders["image"]["teacher"]["encodings"] = {"patch_embeddings": {"kind": "int8"}}
    project.configure(views={"num": 1})
    project.describe(range(NUM_LARGE))
    project.precompute()
    project.keep("whole.zarr")
    return project


@pytest.fixture
def large(large_once: Project) -> Iterator[Project]:
    """That project, without a store."""
    large_once.describe(range(NUM_LARGE))
    yield large_once
    shutil.rmtree(large_once.store.parent, ignore_errors=True)
