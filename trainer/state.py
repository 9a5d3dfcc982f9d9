"""The state of a training run: everything that one step changes, and that a checkpoint must keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from contract.errors import ConfigError, RunError, StoreError
from contract.schema import difference
from trainer import checkpoint
from trainer.batch import Tokens
from trainer.device import Device
from trainer.objectives.loss import Context
from trainer.ranks import ALONE, Ranks
from trainer.recipes import AdamW, Compute, Ema, Recipe, decisive
from trainer.streams import Streams
from trainer.students.adapters import Adapters
from trainer.students.layers import Recomputed
from trainer.words import Words

if TYPE_CHECKING:
    from trainer.warm_start import WarmStart

Tensors = tuple[Tensor, ...] | list[Tensor]

# What figures of the moving average begin with.
EMA = "ema/"
# Items from which the adapters' standardisation is measured.
NUM_MEASURED = 256
# Squares of what is larger add up to more than float32 holds.
MOST_MEASURED = 1e15


class State:
    """Student, its moving average, objectives, optimizer, the step they are at and what validation found so far.

    `best` is the best figure (higher is better, None before the first), `num_worse` how many validations ago that
    was; `sums` are the parts of the loss since they were last written down. `stopped` says why validation ended the
    run, "" if it did not. `model` is the student as it is called in a step. Unless it
    `is_new`, a checkpoint's weights are about to take the place of its own, and no teacher's are read for it.
    """

    def __init__(
        self,
        recipe: Recipe,
        streams: Streams,
        device: Device,
        ranks: Ranks = ALONE,
        start: WarmStart | None = None,
        *,
        is_new: bool = True,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.device = device
        self.ranks = ranks
        self.student = _student(recipe, streams, is_new=is_new).to(device.name)
        if start is not None:  # before what begins as a copy of the student
            start.load_student(self.student)
        # A list, in the recipe's order: names such as "type" are taken in a ModuleDict.
        self.objectives = _objectives(recipe, streams, self.student).to(device.name)
        if start is not None:
            start.load_objectives(recipe.objectives, self.objectives)
        self.optimizer = _optimizer(recipe.optimizer, [self.student, self.objectives])
        self.scaler = device.scaler()
        self.ema = None if recipe.ema is None else average(self.student, recipe.ema, lambda: self.step)
        self.step = 0
        self.best: float | None = None
        self.num_worse = 0
        self._best_is_ema = recipe.validation.metric.startswith(EMA)
        self.sums: dict[str, list[float]] = {}
        self.stopped = ""
        self._recipe = decisive(recipe)
        self.model = compiled(self.student, recipe.compute)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        checkpoint.save(path, self.tensors(), self.scalars())

    def tensors(self) -> dict[str, Tensor]:
        """All that is a tensor, by the name that it has in a checkpoint."""
        tensors = {
            **checkpoint.put_under("student", self.student.state_dict()),
            **checkpoint.put_under("objectives", self.objectives.state_dict()),
            **checkpoint.put_under("optimizer", self._slots()),
            **random_state(self.device),
        }
        if self.ema is not None:
            tensors |= checkpoint.put_under("ema", self.ema.state_dict())
        return tensors

    def scalars(self) -> dict[str, Any]:
        """All that is not."""
        return {
            "step": self.step,
            "best": self.best,
            "num_worse": self.num_worse,
            "sums": self.sums,
            "stopped": self.stopped,
            "scaler": self.scaler.state_dict(),
            "recipe": self._recipe,
        }

    def restore(self, path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Continue from a checkpoint that was read from `path`: the next step is as if nothing had happened."""
        if changed := difference(scalars.get("recipe", self._recipe), self._recipe):
            raise RunError(f"{path} is a checkpoint of another recipe than the run's config.yaml: {changed}")
        try:
            self.student.load_state_dict(checkpoint.under("student", tensors))
            self.objectives.load_state_dict(checkpoint.under("objectives", tensors))
            self._restore_slots(checkpoint.under("optimizer", tensors))
            if self.ema is not None:
                self.ema.load_state_dict(checkpoint.under("ema", tensors))
            restore_random_state(tensors, self.device)
            self.step, self.best, self.num_worse = (scalars[name] for name in ("step", "best", "num_worse"))
            self.stopped = scalars["stopped"]
            self.sums.update(scalars["sums"])
            self.scaler.load_state_dict(scalars["scaler"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError(f"{path}: not a checkpoint of this recipe and store: {str(error)[:200]}") from error

    def restore_student(self, path: Path) -> None:
        """Take the student and the objectives alone; the average's student where the best figure was its own."""
        tensors, _ = checkpoint.load(path)
        prefix = "ema.module" if self._best_is_ema else "student"
        self.student.load_state_dict(checkpoint.under(prefix, tensors))
        self.objectives.load_state_dict(checkpoint.under("objectives", tensors))

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


def compiled(student: nn.Module, config: Compute) -> nn.Module:
    """The student as it is called in a step; it shares its weights with the one that is given."""
    for module in student.modules():
        if isinstance(module, Recomputed):
            module.recompute = config.checkpoint_activations
    if config.compile == "off":
        return student
    return cast(nn.Module, torch.compile(student, mode=config.compile))


def average(student: nn.Module, config: Ema, num_steps: Callable[[], int]) -> AveragedModel:
    """A moving average of the student's weights; `num_steps` tells how many have been taken."""

    def blend(averages: Tensors, current: Tensors, _: Tensor | int) -> None:
        step = num_steps()
        decay = min(config.decay, (1 + step) / (10 + step)) if config.warmup else config.decay
        torch._foreach_lerp_(averages, current, 1 - decay)

    # Buffers are taken over: a channel that never moves is divided by infinity, whose average would be no number.
    return AveragedModel(student, multi_avg_fn=blend, use_buffers=False)


def random_state(device: Device) -> dict[str, Tensor]:
    """The states of the generators that a step draws from."""
    state = {"rng.cpu": torch.get_rng_state()}
    return state | {"rng.cuda": torch.cuda.get_rng_state(device.name)} if device.is_cuda else state


def restore_random_state(state: Mapping[str, Tensor], device: Device) -> None:
    """Set them."""
    torch.set_rng_state(state["rng.cpu"])
    if device.is_cuda and "rng.cuda" in state:
        torch.cuda.set_rng_state(state["rng.cuda"], device.name)


def _objectives(recipe: Recipe, streams: Streams, student: nn.Module) -> nn.ModuleList:
    words = streams.words
    context = Context(
        student=student,
        width=recipe.student.width,
        embedding_dim=recipe.student.embedding_dim,
        modalities=tuple(streams.shapes()),
        targets=streams.target_shapes(),
        num_places=streams.num_places,
        labels=streams.labels(),
        anchor_targets=streams.anchor_targets(),
        num_tokens={modality: shape.num_tokens for modality, shape in streams.shapes().items()},
        token_dropout={modality: config.token_dropout for modality, config in recipe.student.adapters.items()},
        **({} if words is None else _words(words)),
    )
    return nn.ModuleList(config.build(context) for config in recipe.objectives.values())


def _words(words: Words) -> dict[str, Any]:
    return {"vocabulary": words.vocabulary, "special": words.special, "word_vectors": words.vectors}


def _student(recipe: Recipe, streams: Streams, *, is_new: bool) -> nn.Module:
    needed = {target for objective in recipe.objectives.values() for target in objective.classes}
    found = streams.target_shapes()
    classes = {found[target] for target in needed}
    if len(classes) > 1:
        raise ConfigError(
            f"targets {', '.join(sorted(needed))} have different numbers of classes: {sorted(classes)}"
        )
    shapes = {modality: replace(shape, is_new=is_new) for modality, shape in streams.shapes().items()}
    student = recipe.student.build(shapes, classes.pop()[0] if classes else 0)
    adapters = student.adapters
    assert isinstance(adapters, Adapters)
    for modality in shapes:
        tokens = streams.sample(modality, NUM_MEASURED)
        _require_moderate(modality, tokens, streams)
        adapters.measure(modality, tokens)
    return student


def _require_moderate(modality: str, tokens: Tokens, streams: Streams) -> None:
    """Raise `StoreError` for values that can't be standardised: one of them would switch all others off."""
    largest = float(tokens.values.abs().max())
    if not largest < MOST_MEASURED:
        stream = next(stream for stream in streams.streams if modality in stream.inputs)
        raise StoreError(
            f"{stream.store.path}: {stream.inputs[modality].values} has values as large as {largest:.3g} among "
            f"{len(tokens.values)} items; `pipeline verify` the store, and look at what its encoder gives"
        )


def _optimizer(config: AdamW, modules: list[nn.Module]) -> torch.optim.AdamW:
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
