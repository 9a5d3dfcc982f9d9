"""What built encoders share: which fields are taken, the precision of the forward pass, hooks on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from contract.errors import ConfigError
from contract.schema import Field

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16", "float16"]


def take(fields: Sequence[Field], names: Sequence[str] | None, default: Sequence[str]) -> tuple[Field, ...]:
    """The fields of these names (None: of the default ones that there are), in the order of `fields`."""
    known = [field.name for field in fields]
    wanted = default if names is None else names
    unknown = [name for name in wanted if name not in known]
    if names is not None and (unknown or not names):
        found = f"take: {unknown[0]!r} is not" if unknown else "take is empty: name some"
        raise ConfigError(f"{found} among what the model gives: {', '.join(known)}")
    return tuple(field for field in fields if field.name in wanted)


def precisions(encoder: Any) -> set[str]:
    """The precisions that an encoder, or any member of an ensemble, computes at; float32 left out."""
    found = {getattr(encoder, "precision", "float32")}.union(*map(precisions, getattr(encoder, "members", ())))
    return found - {"float32"}


def in_float32(encoder: Any) -> Any:
    """The same encoder, computing in float32."""
    if hasattr(encoder, "members"):
        return replace(encoder, members=tuple(map(in_float32, encoder.members)))
    return replace(encoder, precision="float32") if hasattr(encoder, "precision") else encoder


def autocast(device: str, precision: Precision) -> torch.autocast:
    """The context in which a model computes at this precision; its parameters stay float32."""
    import torch

    return torch.autocast(torch.device(device).type, getattr(torch, precision), enabled=precision != "float32")


def to_numpy(outputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The named tensors [n, ...] as arrays, float32 where they are of floats."""
    return {
        name: (outputs[name].float() if outputs[name].is_floating_point() else outputs[name]).cpu().numpy()
        for name in names
    }


class Caught:
    """The outputs of modules of a model, caught by hooks while it runs: name -> what its module last gave.

    `modules` maps a name to the path of a module, such as "encoder.layer.3.output".
    """

    def __init__(self, model: torch.nn.Module, modules: Mapping[str, str]) -> None:
        self._outputs: dict[str, Any] = {}
        for name, path in modules.items():
            model.get_submodule(path).register_forward_hook(self._catch(name))

    def clear(self) -> None:
        """Forget what was caught: called before each forward pass."""
        self._outputs.clear()

    def __getitem__(self, name: str) -> Any:
        """The module's output, as it gave it; KeyError if nothing passed through it."""
        return self._outputs[name]

    def _catch(self, name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self._outputs[name] = output

        return hook
