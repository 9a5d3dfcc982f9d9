"""Where, and in which precision, a student runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

# `tf32`: products of float32 with ten bits of mantissa, on GPUs that have them.
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Device:
    """`name` is torch's, "cpu", "cuda" or "cuda:1"; `precision` is one of `Precision`, but not auto."""

    name: str
    precision: str

    @classmethod
    def choose(cls, precision: str) -> Device:
        """The GPU if there is one; `auto` is bfloat16 there and float32 on a CPU."""
        name = "cuda" if torch.cuda.is_available() else "cpu"
        automatic = "bfloat16" if name == "cuda" else "float32"
        return cls(name=name, precision=automatic if precision == "auto" else precision)

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return torch.device(self.name).type == "cuda"

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 or float16 if that is the precision; weights and scores stay float32."""
        kind = torch.device(self.name).type
        return torch.autocast(kind, REDUCED.get(self.precision), enabled=self.precision in REDUCED)

    def prepare(self) -> None:
        """Have products of float32 made as the precision says, from now on in this process."""
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps small gradients of float16 from becoming zero; does nothing in other precisions."""
        return torch.amp.GradScaler(torch.device(self.name).type, enabled=self.precision == "float16")

    def memory_bytes(self) -> int:
        """The most that this process has used: of the GPU's memory, or of the machine's."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.name)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
