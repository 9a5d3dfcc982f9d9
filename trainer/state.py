"""The state of a training run: everything that one step changes, and that a checkpoint must keep."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from contract.errors import ConfigError, RunError
from trainer import checkpoint
from trainer.device import Device
from trainer.recipes import AdamW, Recipe
from trainer.streams import Streams
from trainer.students.adapters import Adapters

# Items from which the adapters' standardisation is measured.
NUM_MEASURED = 256


class State:
    """Student, objectives, optimizer, the step they are at and the best figure so far."""

    def __init__(self, recipe: Recipe, streams: Streams, device: Device) -> None:
        torch.manual_seed(recipe.seed)
        self.device = device
        self.student = _student(recipe, streams).to(device.name)
        # A list, in the recipe's order: names such as "type" are taken in a ModuleDict.
        self.objectives = nn.ModuleList(config.build() for config in recipe.objectives.values()).to(device.name)
        self.optimizer = _optimizer(recipe.optimizer, [self.student, self.objectives])
        self.step = 0
        self.best = -1.0

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        tensors = {
            **checkpoint.put_under("student", self.student.state_dict()),
            **checkpoint.put_under("objectives", self.objectives.state_dict()),
            **checkpoint.put_under("optimizer", self._slots()),
            "rng.cpu": torch.get_rng_state(),
        }
        if self.device.name == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        checkpoint.save(path, tensors, {"step": self.step, "best": self.best})

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint: the next step is as if there had been no interruption."""
        tensors, state = checkpoint.load(path)
        try:
            self.student.load_state_dict(checkpoint.under("student", tensors))
            self.objectives.load_state_dict(checkpoint.under("objectives", tensors))
            self._restore_slots(checkpoint.under("optimizer", tensors))
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError(f"{path}: not a checkpoint of this recipe and store: {str(error)[:200]}") from error
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.name == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        self.step, self.best = state["step"], state["best"]

    def restore_student(self, path: Path) -> None:
        """Take the student's weights alone."""
        tensors, _ = checkpoint.load(path)
        self.student.load_state_dict(checkpoint.under("student", tensors))

    def _slots(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{slot}": value for index, slots in state.items() for slot, value in slots.items()}

    def _restore_slots(self, slots: dict[str, Tensor]) -> None:
        tree = self.optimizer.state_dict()
        tree["state"] = {}
        for name, value in slots.items():
            index, slot = name.split(".")
            tree["state"].setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict(tree)


def _student(recipe: Recipe, streams: Streams) -> nn.Module:
    needed = {target for objective in recipe.objectives.values() for target in objective.needs}
    widths = {streams.num_classes(target) for target in needed}
    if len(widths) > 1:
        raise ConfigError(
            f"targets {', '.join(sorted(needed))} have different numbers of classes: {sorted(widths)}"
        )
    shapes = streams.shapes()
    student = recipe.student.build(shapes, widths.pop() if widths else 0)
    adapters = student.adapters
    assert isinstance(adapters, Adapters)
    for modality in shapes:
        adapters.measure(modality, streams.sample(modality, NUM_MEASURED))
    return student


def _optimizer(config: AdamW, modules: list[nn.Module]) -> torch.optim.AdamW:
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
