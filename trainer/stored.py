"""Stored fields as the trainer reads them: bytes into buffers, and values on the device they are needed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from contract.manifest import Rows
from contract.store import TargetStore

# What is to be read of a modality: the rows, and which view of each (0: the evaluation view).
Views = Rows | int
Arrays = dict[str, Tensor]
# Store -> (FieldSet, device) -> its constants there.
_constants: WeakKeyDictionary[TargetStore, dict[tuple[str, torch.device], Arrays]] = WeakKeyDictionary()


class Buffers:
    """Tensors of the host that are filled again and again; pinned where a GPU is to copy from them."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._tensors: dict[str, Tensor] = {}

    @cached_property
    def others(self) -> Buffers:
        """More of them, for what is read of the same fields at the same time."""
        return Buffers(pinned=self._pinned)

    def get(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Tensor:
        """The first rows of the tensor of that name, made anew only if it has too few."""
        tensor = self._tensors.get(name)
        if tensor is None or len(tensor) < shape[0]:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            tensor = self._tensors[name] = torch.empty(shape, dtype=kind, pin_memory=self._pinned)
        return tensor[: shape[0]]


@dataclass(frozen=True, kw_only=True)
class StoredField:
    """A field of a store, by its full reference."""

    store: TargetStore
    reference: str

    @property
    def key(self) -> str:
        """The FieldSet it is in."""
        return self.reference.rpartition("/")[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row, decoded."""
        return self.store.field(self.reference).shape

    def read(self, rows: Rows, views: Views, buffers: Buffers | None = None, *, check: bool = False) -> Arrays:
        """The stored arrays of these rows, on the host: in `buffers`, or in tensors of their own."""
        buffers = buffers or Buffers(pinned=False)
        layouts = self.store.field(self.reference).arrays
        tensors = {
            name: buffers.get(f"{self.store.path}/{self.key}/{name}", (len(rows), *shape), np.dtype(dtype))
            for name, (dtype, shape) in layouts.items()
        }
        out = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.store.read(self.reference, rows, out, views=views, check=check)
        return tensors

    def decode(self, arrays: Mapping[str, Tensor], buffers: Buffers | None = None) -> Tensor:
        """The values float [n, ...] of stored arrays, on the device that these are on, or in `buffers` of the host.

        Fresh memory costs the kernel more than a cast costs: it is filled with zeros, page by page.
        """
        stored = self.store.field(self.reference).encoding.casts
        if buffers is None or not stored:
            return self._decoded(arrays)
        (array,) = arrays.values()
        room = buffers.get(f"{self.store.path}/{self.reference} decoded", (array.numel(),), np.dtype(np.float32))
        return room.view(array.shape).copy_(array.view(getattr(torch, stored)))

    def _decoded(self, arrays: Mapping[str, Tensor]) -> Tensor:
        device = next(iter(arrays.values())).device
        known = _constants.setdefault(self.store, {})
        if (self.key, device) not in known:
            constants = self.store.constants(self.key)
            known[self.key, device] = {
                name: torch.from_numpy(array).to(device) for name, array in constants.items()
            }
        decoded: Tensor = self.store.field(self.reference).decode(arrays, known[self.key, device], torch)
        return decoded
