"""Checkpoints: the whole state of a run in one safetensors file, put in place in one step.

checkpoints/step-00001234.safetensors      the newest few

tensors     student.*  ema.*  objectives.*  optimizer.<parameter>.<slot>  rng.cpu  rng.cuda
metadata    {"sealed": JSON {"crc32c": of everything, "state": what is not a tensor: the step, the recipe, ...}}

Equal states are equal files; so there is one entry of metadata, since safetensors puts several in any order.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from contract.errors import RunError
from contract.files import PARTIAL, replace_file

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The newest `num` checkpoints of a run."""

    folder: Path
    num: int

    def path(self, step: int) -> Path:
        """Where the state after `step` steps lies."""
        return self.folder / f"step-{step:08d}.safetensors"

    def all(self) -> list[Path]:
        """Those that are there, the newest first."""
        return sorted(
            (file for file in self.folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", file.stem)),
            key=lambda file: int(file.stem.removeprefix("step-")),
            reverse=True,
        )

    def save(self, step: int, tensors: Mapping[str, Tensor], state: State) -> None:
        """Write one, and only then let go of the oldest."""
        self.folder.mkdir(exist_ok=True)
        for file in self.folder.glob(f"*{PARTIAL}"):  # of a write that was killed
            file.unlink()
        save(self.path(step), tensors, state)
        for file in self.all()[self.num :]:
            file.unlink()

    def newest(self) -> tuple[Path, dict[str, Tensor], State] | None:
        """The newest that can be read, None where there is none; those that can't be are said, and left."""
        problems = []
        for path in self.all():
            try:
                found = path, *load(path)
            except RunError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                print(f"{problem}; going back to {path.name}", file=sys.stderr)
            return found
        if problems:
            raise RunError(f"no checkpoint can be read: {'; '.join(problems)}")
        return None


def save(path: Path, tensors: Mapping[str, Tensor], state: State) -> None:
    """Write the file under a temporary name, flush it to the disk, put it in place."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sealed = {"crc32c": _checksum(state, contiguous), "state": state}
    replace_file(path, to_bytes(contiguous, metadata={"sealed": json.dumps(sealed)}))


def load(path: Path) -> tuple[dict[str, Tensor], State]:
    """The tensors, on the CPU, and the state."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "precept" in metadata:  # version 0.1 wrote no checksum
            return tensors, cast(State, json.loads(metadata["precept"]))
        sealed = json.loads(metadata["sealed"])
        if sealed["crc32c"] != _checksum(sealed["state"], tensors):
            raise ValueError("its checksum is wrong")
        return tensors, cast(State, sealed["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a readable checkpoint: {error}") from error


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def put_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _checksum(state: State, tensors: Mapping[str, Tensor]) -> str:
    """The crc32c of the state as JSON and of the tensors, with their names, in hexadecimal."""
    found = google_crc32c.value(json.dumps(state).encode())
    for name in sorted(tensors):
        found = google_crc32c.extend(found, name.encode())
        found = google_crc32c.extend(found, tensors[name].reshape(-1).view(torch.uint8).numpy())
    return f"{found:08x}"
