"""An ensemble's features for ONNX: one picture in each member's size, each member's vector at unit length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.ensemble import Ensemble
from trainer.export.portable import Portable, portable


def of_members(encoder: Ensemble, name: str) -> Portable:
    """The vectors of all members, side by side."""
    members = [
        portable(member, vector, False, f"{name}, members.{number}")
        for number, (member, vector) in enumerate(zip(encoder.members, encoder.vectors, strict=True))
    ]
    return Portable(
        frozen=Joined([member.frozen for member in members]),
        preprocessing={"kind": "views", "views": [dict(member.preprocessing) for member in members]},
        inputs=tuple(f"pixels_{number}" for number in range(len(members))),
        example=lambda n: tuple(tensor for member in members for tensor in member.example(n)),
        axes={},
        save=lambda folder: ", ".join(one.save(folder / str(n)) for n, one in enumerate(members)),
    )


class Joined(nn.Module):
    """Each member with an input of its own."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *pixels: Tensor) -> tuple[Tensor, None]:
        """Uint8 [B, h, w, 3] for each member -> float [B, D1 + D2 + ...]."""
        vectors = [member(one)[0].float() for member, one in zip(self.members, pixels, strict=True)]
        return torch.cat([F.normalize(vector, dim=-1) for vector in vectors], dim=-1), None
