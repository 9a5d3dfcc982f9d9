"""Checkpoints: the whole state of a run in one safetensors file, replaced in one step.

tensors     student.*  objectives.*  optimizer.<parameter>.<slot>  rng.cpu  rng.cuda
metadata    {"precept": JSON of what is not a tensor: the step, the best figure so far}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from contract.errors import RunError
from contract.files import replace_file

State = dict[str, Any]


def save(path: Path, tensors: Mapping[str, Tensor], state: State) -> None:
    """Write the file under a temporary name, flush it to the disk, put it in place."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, to_bytes(contiguous, metadata={"precept": json.dumps(state)}))


def load(path: Path) -> tuple[dict[str, Tensor], State]:
    """The tensors, on the CPU, and the state."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["precept"])
            return {name: file.get_tensor(name) for name in file.keys()}, cast(State, state)  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a readable checkpoint: {error}") from error


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def put_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
