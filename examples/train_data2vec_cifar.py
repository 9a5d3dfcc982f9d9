"""Train a small data2vec teacher on CIFAR images, without their labels, where no published one can be had.

    python examples/train_data2vec_cifar.py OUT [--data DIR] [--epochs 60] [--device cuda]

What it is: 2.7 million weights (width 192, 6 blocks, patches of 4x4), of 8,000 images, the training splits of
CIFAR-10 and CIFAR-100 under DIR (cifar10/cifar10.npz, cifar100/cifar100.npz; $PRECEPT_REAL_DATA). It is none
of the published teachers, which are 30 times as large and saw a million images; it is self-supervised as they are.

data2vec 2.0 (Baevski et al. 2022, arXiv 2212.07525): the student sees a quarter of an image's patches and regresses
the targets of all others, which an exponential moving average of it makes of the whole image. Each image is masked
`MASKS` times for one pass of the teacher; a few convolutions fill the hidden places in. Deviations: smooth-L1 with
beta 2, as in version 1 (arXiv 2202.03555); no loss of the CLS token; a learned vector, not noise, where a place is
hidden; a shorter schedule with a faster average.

Each epoch ends with a checkpoint, OUT/checkpoint.pt, from which the same command goes on, and with the teacher as
transformers keeps it, OUT/model: `encoders.image.teacher.model=OUT/model` of kind data2vec_image, with `version: 2`
and `k: 5`. The printed accuracy is that of zero-shot neighbours among training images; no test image is read.
"""

from __future__ import annotations

import argparse
import os
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BeitImageProcessorPil, Data2VecVisionConfig, Data2VecVisionModel

from encoders.data2vec.targets import Targets
from encoders.outputs import Caught

WIDTH, DEPTH, HEADS, SIZE, PATCH = 192, 6, 3, 32, 4
GRID = SIZE // PATCH
NUM_VISIBLE, NUM_BLOCKS, MASKS = 16, 2, 4
TARGETS = Targets(kind="topk_mean", blocks=(1, 2, 3, 4, 5), normalise="instance", layer_normed=True)
BATCH, LEARNING_RATE, WEIGHT_DECAY, BETA = 128, 1e-3, 0.05, 2.0
# The average's decay, from the first to the last over this share of the steps.
DECAY, LAST_DECAY, RISE = 0.99, 0.999, 0.5
WARMUP = 0.1
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NUM_QUERIES, NUM_BANK = 500, 2000
MEASURED_EVERY = 5  # epochs


class Decoder(nn.Module):
    """Convolutions over the grid of patches, which fill in what was hidden."""

    def __init__(self, width: int = WIDTH // 2, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, width))
        self.unseen = nn.Parameter(0.02 * torch.randn(width))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=6) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.leave = nn.Linear(width, WIDTH)

    def forward(self, tokens: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Float [N, V, W] at the places int64 [N, V] -> float [N, H, W] of those int64 [N, H] that are hidden."""
        tokens = self.enter(tokens)
        unseen = self.unseen.to(tokens.dtype).expand(len(tokens), GRID**2, -1)
        grid = unseen.scatter(1, visible[..., None].expand_as(tokens), tokens)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            image = grid.transpose(1, 2).unflatten(2, (GRID, GRID))
            grid = grid + F.gelu(norm(convolution(image).flatten(2).transpose(1, 2)))
        filled: Tensor = self.leave(grid.gather(1, hidden[..., None].expand(-1, -1, grid.shape[2])))
        return filled


class Teacher:
    """The student, the average of it that is its teacher, and all else that a step changes."""

    def __init__(self, num_steps: int, device: str) -> None:
        config = Data2VecVisionConfig(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            image_size=SIZE,
            patch_size=PATCH,
            use_absolute_position_embeddings=True,
            use_mean_pooling=True,
            layer_scale_init_value=0.0,
            hidden_dropout_prob=0.0,
            drop_path_rate=0.0,
        )
        self.num_steps, self.device, self.step = num_steps, device, 0
        # On a CPU the fused attention's backward pass in bfloat16 takes longer than all else of a step together.
        self.student = Data2VecVisionModel._from_config(config, attn_implementation="eager").to(device)
        nn.init.trunc_normal_(self.student.embeddings.position_embeddings, std=0.02)
        nn.init.trunc_normal_(self.student.embeddings.cls_token, std=0.02)
        self.average = deepcopy(self.student).eval().requires_grad_(requires_grad=False)
        self.caught = Caught(self.average, TARGETS.modules("encoder.layer.{}", "encoder.layer.{}.output"))
        self.decoder = Decoder().to(device)
        learned = [*self.student.parameters(), *self.decoder.parameters()]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        parts = {name: getattr(self, name).state_dict() for name in ("student", "average", "decoder", "optimizer")}
        return {**parts, "step": self.step, "random": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in ("student", "average", "decoder", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        torch.set_rng_state(state["random"])

    def learn(self, images: Tensor) -> dict[str, float]:
        """One step on float [B, 3, h, w]; the loss, and how much targets and predictions differ between places."""
        with torch.autocast(self.device, torch.bfloat16):
            targets = self.targets(images)  # [B, T, W]
            visible, hidden = places(MASKS * len(images), self.device)
            predicted = self.decoder(self.encoded(images, visible), visible, hidden).float()
        wanted = targets.repeat_interleave(MASKS, 0).gather(1, hidden[..., None].expand_as(predicted))
        loss = F.smooth_l1_loss(predicted, wanted, beta=BETA)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*self.student.parameters(), *self.decoder.parameters()], 3.0)
        progress = self.step / self.num_steps
        rate = min(progress / WARMUP, 0.5 * (1 + np.cos(np.pi * max(0.0, progress - WARMUP) / (1 - WARMUP))))
        for group in self.optimizer.param_groups:
            group["lr"] = float(LEARNING_RATE * rate)  # a checkpoint with a NumPy scalar is not read
        self.optimizer.step()
        decay = DECAY + (LAST_DECAY - DECAY) * min(1.0, progress / RISE)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 1 - decay)
        self.step += 1
        spreads = (
            values.detach()[:16].float().flatten(0, 1).std(0).mean().item() for values in (targets, predicted)
        )
        return {"loss": loss.item(), **dict(zip(("target spread", "prediction spread"), spreads, strict=True))}

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Float32 [B, T, W] of the whole images."""
        self.caught.clear()
        self.average(images)
        return TARGETS.of(self.caught, num_before=1)

    def encoded(self, images: Tensor, visible: Tensor) -> Tensor:
        """The student's tokens float [MASKS B, V, W] of the places int64 [MASKS B, V] alone."""
        embedded, _ = self.student.embeddings(images)  # [B, 1 + T, W], CLS first
        embedded = embedded.repeat_interleave(MASKS, 0)
        seen = embedded[:, 1:].gather(1, visible[..., None].expand(-1, -1, WIDTH))
        tokens = self.student.encoder(torch.cat([embedded[:, :1], seen], 1)).last_hidden_state
        return tokens[:, 1:]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The mean of the teacher's last tokens, float32 [n, W], unit length, of uint8 [n, h, w, 3]."""
        found = []
        for chunk in images.split(500):
            with torch.autocast(self.device, torch.bfloat16):
                tokens = self.average(normalised(chunk.to(self.device))).last_hidden_state
            found.append(F.normalize(tokens[:, 1:].float().mean(1), dim=-1).cpu())
        return torch.cat(found)


def places(num_rows: int, device: str) -> tuple[Tensor, Tensor]:
    """Which patches are visible, int64 [N, V], and which are hidden: blocks about random centres stay visible."""
    centres = GRID * torch.rand(num_rows, NUM_BLOCKS, 1, 2)
    at = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1).flatten(0, 1) + 0.5
    far = (at - centres).abs().amax(-1).amin(1)  # [N, T]
    order = (far + 0.5 * torch.rand_like(far)).argsort(1).to(device)
    return order[:, :NUM_VISIBLE], order[:, NUM_VISIBLE:]


def normalised(images: Tensor) -> Tensor:
    """Uint8 [n, h, w, 3] -> float32 [n, 3, h, w]."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def augmented(images: Tensor) -> Tensor:
    """Float [n, 3, h, w], each a random crop of at least half of the area, mirrored or not."""
    area, shape = 0.5 + 0.5 * torch.rand(len(images)), (0.9 + 0.2 * torch.rand(len(images))).sqrt()
    width, height = (area.sqrt() * shape).clamp(max=1), (area.sqrt() / shape).clamp(max=1)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = width * torch.where(torch.rand(len(images)) < 0.5, -1, 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = ((2 * torch.rand(len(images)) - 1) * (1 - size) for size in (width, height))
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def neighbour_accuracy(features: Tensor, labels: Tensor) -> float:
    """Percent of the first images whose nearest neighbour among the others is of their class."""
    queries, bank = features.split([NUM_QUERIES, NUM_BANK])
    nearest = (queries @ bank.T).argmax(1)
    return 100 * (labels[NUM_QUERIES:][nearest] == labels[:NUM_QUERIES]).float().mean().item()


def read(data: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """{dataset: training images uint8 [n, 32, 32, 3] and labels int64 [n], in an order of their own}."""
    found = {}
    for name in ("cifar10", "cifar100"):
        with np.load(data / name / f"{name}.npz") as arrays:
            order = np.random.default_rng(0).permutation(len(arrays["x_train"]))
            images, labels = arrays["x_train"][order], arrays["y_train"][order].astype(np.int64)
            found[name] = torch.from_numpy(images), torch.from_numpy(labels)
    return found


def told(teacher: Teacher, sets: dict[str, tuple[Tensor, Tensor]]) -> str:
    """The neighbour accuracy on each dataset."""
    first = NUM_QUERIES + NUM_BANK
    accuracies = (
        f"{name} {neighbour_accuracy(teacher.features(images[:first]), labels[:first]):.1f}"
        for name, (images, labels) in sets.items()
    )
    return f"any@1 {', '.join(accuracies)}"


def keep(teacher: Teacher, out: Path) -> None:
    """Write the checkpoint and the model, each whole or not at all."""
    partial = out / "checkpoint.partial"
    torch.save(teacher.state(), partial)
    partial.replace(out / "checkpoint.pt")
    teacher.average.save_pretrained(out / "model")
    size = {"height": SIZE, "width": SIZE}
    processor = BeitImageProcessorPil(size=size, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD))
    processor.save_pretrained(out / "model")


def main() -> None:
    """Train, from the checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sets = read(options.data)
    images = torch.cat([images for images, _ in sets.values()])
    per_epoch = len(images) // BATCH
    teacher = Teacher(options.epochs * per_epoch, options.device)
    if (options.out / "checkpoint.pt").exists():
        teacher.restore(torch.load(options.out / "checkpoint.pt", weights_only=True))
        print(f"goes on after epoch {teacher.step // per_epoch}", flush=True)
    else:
        print(f"untrained: {told(teacher, sets)}", flush=True)
    while (epoch := teacher.step // per_epoch) < options.epochs:
        started, found = time.monotonic(), []
        for rows in torch.randperm(len(images))[: per_epoch * BATCH].split(BATCH):
            found.append(teacher.learn(augmented(normalised(images[rows].to(options.device)))))
        means = {name: float(np.mean([step[name] for step in found])) for name in found[0]}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        keep(teacher, options.out)
        if (epoch + 1) % MEASURED_EVERY == 0 or epoch + 1 == options.epochs:
            shown = f"{shown}, {told(teacher, sets)}"
        print(f"epoch {epoch + 1}: {shown}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
