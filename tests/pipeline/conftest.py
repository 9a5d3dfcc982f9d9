"""A small dataset on disk, a small teacher, and the configuration that names them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

# Wide enough that a row is over 16 kB: 512 rows make a shard, and a little more than that two.
WIDE_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 576, "depth": 1, "num_heads": 4, "num_classes": 7}


def write_photographs(root: Path, num_images: int) -> None:
    """`num_images` noise photographs with two captions each, in Karpathy's layout, most of them for training."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for number in range(num_images):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"images/{number}.png")
        split = {8: "val", 9: "test"}.get(number % 10, "train")
        captions = [{"raw": f"photograph {number} with noise {k}"} for k in range(2)]
        entries.append({"filename": f"{number}.png", "split": split, "sentences": captions})
    (root / "captions.json").write_text(json.dumps({"images": entries}))


class Project:
    """A folder with a dataset `tiny`, its data manifest and configuration."""

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder, self.data = folder, folder / "data/tiny"
        write_photographs(self.data, num_images)
        torch.manual_seed(0)
        teacher = timm.create_model("vit_tiny_patch16_224", pretrained=False, **WIDE_VIT)
        save_file(teacher.state_dict(), folder / "teacher.safetensors")
        self._write(
            "tiny.yaml",
            {
                "name": "tiny",
                "title": "Noise",
                "homepage": "none",
                "licence": "none",
                "source": {
                    "kind": "karpathy",
                    "annotations": ["captions.json"],
                    "images": ["images"],
                    "layout": "captions.json and images/",
                },
            },
        )
        teacher_config = {
            "kind": "timm",
            "model": "vit_tiny_patch16_224",
            "model_args": WIDE_VIT,
            "checkpoint": str(folder / "teacher.safetensors"),
            "batch_size": 40,
        }
        encoders = {"image": {"teacher": teacher_config}, "text": {"tokens": {"kind": "ngrams", "max_length": 8}}}
        self._write("encoders.yaml", {"encoders": encoders})

    def arguments(self, *more: str) -> list[str]:
        """The command line of a run, after `pipeline`, for this folder as the current one."""
        return ["precompute", "--dataset", "tiny.yaml", "--config", "encoders.yaml", "--engine", "local", *more]

    def _write(self, name: str, tree: dict[str, Any]) -> None:
        with (self.folder / name).open("w") as file:
            YAML(typ="safe").dump(tree, file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Thirty photographs, the current folder beside them."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, 30)


@pytest.fixture(scope="module")
def large_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Photographs for three shards of the teacher."""
    return Project(tmp_path_factory.mktemp("large"), 1100)
