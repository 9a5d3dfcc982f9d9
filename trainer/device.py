"""Where, and in which precision, a student runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Device:
    """`name` is torch's, "cpu" or "cuda"; `precision` float32 or bfloat16."""

    name: str
    precision: str

    @classmethod
    def choose(cls, precision: str) -> Device:
        """The GPU if there is one; `auto` is bfloat16 there and float32 on a CPU."""
        name = "cuda" if torch.cuda.is_available() else "cpu"
        automatic = "bfloat16" if name == "cuda" else "float32"
        return cls(name=name, precision=automatic if precision == "auto" else precision)

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 if that is the precision; weights and scores stay float32."""
        return torch.autocast(self.name, torch.bfloat16, enabled=self.precision == "bfloat16")
