"""Learning-rate schedules: the factor on the optimizer's rate at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from trainer.ranges import Positive, Share


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up over a share of the run, then half a cosine down to `floor` (SGDR, arXiv 1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.1
    floor: Share = 0.0

    def factor(self, step: int, num_steps: int, steps_per_epoch: int) -> float:
        """The factor for step 0, 1, ... of `num_steps`."""
        num_warmup = round(self.warmup * num_steps)
        if step < num_warmup:
            return (step + 1) / num_warmup
        progress = (step - num_warmup) / max(1, num_steps - num_warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class MultiStep:
    """Multiply by `gamma` at the start of each of these epochs."""

    kind: Literal["multi_step"] = "multi_step"
    epochs: tuple[int, ...]
    gamma: Positive = 0.5

    def factor(self, step: int, num_steps: int, steps_per_epoch: int) -> float:
        """The factor for step 0, 1, ...; the first epoch is number 0."""
        epoch = step // steps_per_epoch
        return self.gamma ** sum(epoch >= milestone for milestone in self.epochs)


# A new schedule is a class above and one line here.
Schedule = Annotated[Cosine | MultiStep, Field(discriminator="kind")]
