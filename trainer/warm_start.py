"""Warm start: a run that begins with another run's best student, and with what its objectives learnt and kept.

    warm_start: runs/avid-scenes-001        in a recipe, or --set warm_start=runs/avid-scenes-001

All of the student comes along, its adapters' standardisation too. An objective's state comes along if both recipes
have it under one name and of one kind, its tensors have the same shapes, and both runs read the same pairs of the
same items, since it may be about them (a memory bank). Optimizer, schedule and random draws begin anew. run.json
has the file's fingerprint. A resumed run goes on from its own checkpoints, and has no need of the other run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from contract import fingerprint
from contract.errors import ConfigError, RunError
from trainer import checkpoint
from trainer.objectives import Objective
from trainer.runs import Run, pairs_of, read_record
from trainer.state import EMA

Tensors = Mapping[str, Tensor]


class WarmStart:
    """The best state of another run, for a run that has no checkpoint yet; as text, what was taken of it."""

    def __init__(self, run: Run) -> None:
        begun = run.record["warm_start"]
        self.file = Path(begun["run"]) / "best.safetensors"
        if not self.file.is_file() or fingerprint.of_file(self.file) != begun["weights"]:
            raise RunError(f"{self.file} is no longer the file that {run.path} was to begin with; begin a new run")
        self._tensors, state = checkpoint.load(self.file)
        if "recipe" not in state:
            raise RunError(f"{self.file} is of an older version, which did not say its recipe; train it anew")
        self._recipe = state["recipe"]
        self._has_same_pairs = pairs_of(read_record(self.file.parent)) == pairs_of(run.record)
        self._taken: list[str] = []
        self._left: list[str] = []

    def __str__(self) -> str:
        taken = "".join(f", objective {name}" for name in self._taken)
        left = f"; anew: {', '.join(self._left)}" if self._left else ""
        return f"warm start: {self.file}: the student{taken}{left}"

    def load_student(self, student: nn.Module) -> None:
        """Put the weights into a student; `ConfigError` if they are not those of one like it."""
        was_average = self._recipe["validation"]["metric"].startswith(EMA)
        found = checkpoint.under("ema.module" if was_average else "student", self._tensors)
        if wrong := _difference(found, student.state_dict()):
            raise ConfigError(
                f"warm_start: the student of {self.file} is not like the recipe's: {wrong}; make `student`, inputs "
                "and classes those of that run, or begin without it"
            )
        student.load_state_dict(found)

    def load_objectives(self, configs: Mapping[str, Objective], modules: nn.ModuleList) -> None:
        """Put into the objectives the state of the same ones, where there is any."""
        for (name, config), module in zip(configs.items(), modules, strict=True):
            wanted = module.state_dict()
            if not wanted:
                continue
            found = self._objective(name)
            if wrong := self._why_not(name, config.kind) or _difference(found, wanted):
                self._left.append(f"{name} ({wrong})")
            else:
                module.load_state_dict(found)
                self._taken.append(name)

    def _objective(self, name: str) -> dict[str, Tensor]:
        names = list(self._recipe["objectives"])
        return checkpoint.under(f"objectives.{names.index(name)}", self._tensors) if name in names else {}

    def _why_not(self, name: str, kind: str) -> str:
        there = self._recipe["objectives"].get(name)
        if there is None:
            return "not there"
        if there["kind"] != kind:
            return f"{there['kind']} there"
        return "" if self._has_same_pairs else "of other items or pairs"


def _difference(found: Tensors, wanted: Tensors) -> str:
    """The first tensor that only one has, or that has another shape; "" if there is none."""
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        there, here = (list(tensors[name].shape) if name in tensors else "nothing" for tensors in (found, wanted))
        if there != here:
            return f"{name} is {there} there and {here} here"
    return ""
