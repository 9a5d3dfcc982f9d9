"""Trains the teacher that comes with the scenes: a small ViT that names the main object's colour and shape.

    python -m pipeline.sources.scenes.train_teacher [--folder DIR]
    python -m pipeline.sources.scenes.train_teacher [--folder DIR] --further

The first trains from scratch, the second goes on from the weights in the folder, with other scenes. Both see
freshly drawn scenes only, mirrored at random; none has the description of a validation or test scene. Both write a
folder in timm's own format: `model.safetensors` (float16) and `config.json` (architecture and its arguments,
preprocessing, classes, and under keys of our own the accuracy and how it was made). One thread, one seed: the same
machine and versions give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models import save_for_hf
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.draw import SIDE, draw
from pipeline.sources.scenes.world import CLASSES, Scene, sample_scene

MODEL = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "num_classes": len(CLASSES),
}
PREPROCESSING: dict[str, Any] = {
    "input_size": (3, SIDE, SIDE),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
FOLDER = Path(__file__).parent / "teacher"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the teacher is trained; `seed` is no data set's."""

    seed: int = 20_000
    num_images: int = 40_000
    num_epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 300
    weight_decay: float = 0.05


FROM_SCRATCH = Training()
FURTHER = Training(seed=20_001, num_epochs=2, learning_rate=7e-4)


def create(seed: int) -> nn.Module:
    """Make the untrained teacher."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(MODEL, **MODEL_ARGS)
    return model


def train(model: nn.Module, training: Training, forbidden: Collection[Scene]) -> None:
    """Train on `num_images` scenes drawn for it, none with a description among `forbidden`."""
    model.train()
    rng = np.random.default_rng(training.seed)
    images, labels = _draw_many(training.num_images, forbidden, rng)
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    num_steps = training.num_epochs * (len(labels) // training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / training.warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps)),
    )
    progress = tqdm(range(num_steps), desc="train", unit="step", mininterval=2.0)
    rows = np.empty(0, dtype=np.int64)
    for _ in progress:
        if len(rows) < training.batch_size:
            rows = rng.permutation(len(labels))
        batch, rows = rows[: training.batch_size], rows[training.batch_size :]
        pixels = images[batch]
        mirrored = rng.random(len(batch)) < 0.5  # every shape stays what it is
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        logits = model(normalise(pixels))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[batch]))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        hits = (logits.argmax(1).numpy() == labels[batch]).mean()
        progress.set_postfix(loss=f"{loss.item():.3f}", hits=f"{hits:.2f}", refresh=False)
    model.eval()


def accuracy(model: nn.Module, scenes: Collection[Scene]) -> float:
    """Share of the scenes whose main object the model names rightly."""
    images = np.stack([draw(scene) for scene in scenes])
    labels = np.array([scene.label for scene in scenes])
    with torch.inference_mode():
        predicted = torch.cat([model(normalise(images[i : i + 250])).argmax(1) for i in range(0, len(images), 250)])
    return float((predicted.numpy() == labels).mean())


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 [n, 64, 64, 3] into float32 [n, 3, 64, 64] with mean and standard deviation 0.5."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - 0.5) / 0.5


def load_teacher(folder: Path = FOLDER) -> nn.Module:
    """Open the teacher that lies in a folder, in float32 and evaluation mode."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def save(model: nn.Module, folder: Path, made: Mapping[str, Any]) -> None:
    """Write the teacher in float16; `made` says how good it is and how it was made."""
    about = {"label_names": CLASSES, "pretrained_cfg": {"tag": "scenes"}, **made}
    save_for_hf(model.half(), folder, model_config=about, safe_serialization=True, data_config=PREPROCESSING)


def _draw_many(
    num: int, forbidden: Collection[Scene], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw scenes for training: uint8 [num, 64, 64, 3] and int64 [num]."""
    scenes: list[Scene] = []
    while len(scenes) < num:
        scene = sample_scene(rng)
        if scene.description not in forbidden:
            scenes.append(scene)
    images = np.stack([draw(scene) for scene in tqdm(scenes, desc="draw", unit="image")])
    return images, np.array([scene.label for scene in scenes], dtype=np.int64)


def main() -> None:
    """Train, write the weights, and measure what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--further", action="store_true")
    options = parser.parse_args()
    folder: Path = options.folder
    torch.set_num_threads(1)
    training = FURTHER if options.further else FROM_SCRATCH
    model = load_teacher(folder) if options.further else create(training.seed)
    before = json.loads((folder / "config.json").read_text())["training"] if options.further else []
    held_out = [sample for sample in Scenes().samples() if sample.split != "train"]
    began = time.monotonic()
    train(model, training, {sample.scene.description for sample in held_out})
    minutes = round((time.monotonic() - began) / 60, 1)
    measured: dict[str, float] = {}
    made = {
        "accuracy": measured,
        "training": [*before, asdict(training) | {"threads": 1, "minutes": minutes}],
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    save(model, folder, made)
    written = load_teacher(folder)
    for split in ("val", "test"):
        scenes = [sample.scene for sample in held_out if sample.split == split]
        measured[split] = accuracy(written, scenes)
        print(f"{split}: top-1 {measured[split]:.1%} of {len(scenes)} scenes")
    save(model, folder, made)


if __name__ == "__main__":
    main()
