"""RUN/tensorboard: event files; `tensorboard --logdir runs` shows every run's."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.logs import Subject


class TensorBoard:
    """Every time a new event file, which tells TensorBoard to forget what the older ones say."""

    def __init__(self, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(subject.path / "tensorboard"), purge_step=0)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
