"""A recipe: everything that decides what a run trains, apart from which stores it reads.

The shipped ones are configs/trainer/*.yaml. Sizes that a store knows (token widths, numbers of classes) are
never written in one, so that the same recipe trains on any teacher's store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.objectives import Objective
from trainer.ranges import Count, NotNegative, Positive, Share
from trainer.schedules import Schedule
from trainer.students import Student


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream of pairs. `store` is a path, or the dataset of a store given with --store ("": all of them).

    `inputs` and `targets` replace the recipe's for this stream, entry by entry.
    """

    pair: str
    store: str = ""
    split: str = "train"
    weight: Positive = 1.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Loshchilov and Hutter 2017 (arXiv 1711.05101); weight decay on matrices only, not on biases and norms."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Retrieval on the split val every so many epochs; `metric` (mean of the trained directions) picks `best`.

    `rsum` is R@1 + R@5 + R@10: on a few hundred validation items it is steadier than any one of them.
    """

    every_epochs: Count = 1
    metric: Literal["R@1", "R@5", "R@10", "rsum"] = "rsum"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run trains.

    `inputs` maps a modality to the stored field that the student reads; a modality that no store has is left
    out. `targets` maps a name that objectives use to a field of the pair's first modality. `expect` maps
    a field ("image/logits") to what must be true of it in every store, such as `{recipe: {model: resnet50}}`.
    `views` says what training sees of a store with several views: a random augmentation in each epoch, or the
    evaluation view alone. The checksums of what is read are verified in the first epoch and then every
    `verify_every_epochs` (0: never).
    """

    name: str
    inputs: Mapping[str, str]
    targets: Mapping[str, str] = field(default_factory=dict)
    expect: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    streams: Literal["auto"] | tuple[StreamConfig, ...] = "auto"
    languages: Literal["all"] | tuple[str, ...] = ("en",)
    student: Student
    objectives: Annotated[
        Mapping[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Objective], Field(min_length=1)
    ]
    optimizer: AdamW = field(default_factory=AdamW)
    schedule: Schedule
    batch_size: Annotated[int, Field(ge=2)] = 256  # objectives compare the rows of a batch
    epochs: Count
    gradient_clip: Positive = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    views: Literal["augmented", "evaluation"] = "augmented"
    verify_every_epochs: Annotated[int, Field(ge=0)] = 10
    validation: Validation = field(default_factory=Validation)
    log_every_steps: Count = 10
