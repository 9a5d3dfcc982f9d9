"""The teacher's accuracy, restored from the stored targets.

It should be what the gate measured on the live teacher before the store was filled; another figure means that
targets and items no longer belong together, or that classes are in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.stored import StoredField
from trainer.streams import Streams

MOST_SAMPLES = 2048
# Standard deviations between two samples' figures that are not put down to chance.
SURPRISING = 5.0


@dataclass(frozen=True, kw_only=True)
class TeacherAccuracy:
    """Top-1 accuracy of one target field over labelled items; `gate` is the live teacher's, if it was scored."""

    reference: str
    accuracy: float
    num_samples: int
    gate: float | None
    num_gate_samples: int

    @property
    def is_surprising(self) -> bool:
        """Whether it is so far below the gate's figure that something must be wrong."""
        if self.gate is None:
            return False
        share = np.clip(self.gate, 0.01, 0.99)
        deviation = np.sqrt(share * (1 - share) * (1 / self.num_samples + 1 / self.num_gate_samples))
        return bool(self.gate - self.accuracy > SURPRISING * deviation)

    def __str__(self) -> str:
        gate = "" if self.gate is None else f" (gate: {self.gate:.1%})"
        return (
            f"teacher: {self.reference} restored: top-1 accuracy {self.accuracy:.1%} on {self.num_samples:,}{gate}"
        )


def restored(streams: Streams) -> Iterator[TeacherAccuracy]:
    """The accuracy of every target that is a distribution over the classes of its items' labels."""
    seen = set()
    for stream in streams.streams:
        manifest = stream.store.manifest
        for reference in stream.targets.values():
            field = StoredField(store=stream.store, reference=reference)
            if (stream.store.path, reference) in seen or field.shape != (manifest.num_classes,):
                continue
            seen.add((stream.store.path, reference))
            labels = np.asarray(manifest.column(stream.pair[0], "label"))
            rows = stream.anchors[labels[stream.anchors] >= 0]
            if not len(rows):
                continue
            rows = rows[np.linspace(0, len(rows) - 1, min(MOST_SAMPLES, len(rows))).astype(np.int64)]
            logits = field.decode(field.read(rows, 0)).numpy()
            gate = stream.store.gate(field.key) or {}
            measured_accuracy = str(gate.get("what", "")).startswith("top-1")
            yield TeacherAccuracy(
                reference=reference,
                accuracy=float((logits.argmax(axis=1) == labels[rows]).mean()),
                num_samples=len(rows),
                gate=gate["value"] if measured_accuracy else None,
                num_gate_samples=gate["num_samples"] if measured_accuracy else 0,
            )
