"""Weights & Biases: a run of the project `precept`, or of the one that WANDB_PROJECT names.

Everything else is as the environment says: WANDB_MODE=offline keeps it under RUN/wandb for `wandb sync`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from contract import fingerprint
from trainer.logs import Subject


class WeightsAndBiases:
    """A resumed run goes on in the same place; steps that are there already are not sent again."""

    def __init__(self, subject: Subject) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "precept"),
            # The folder names the run: the same one after a resume.
            id=fingerprint.of_tree([str(subject.path.absolute()), subject.recipe]),
            name=subject.path.name,
            config=dict(subject.recipe),
            dir=str(subject.path),
            resume="allow",
        )
        self._first = self._run.step

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """All of a step's figures at once."""
        if step >= self._first:
            self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish(quiet=True)
