"""A recipe: everything that decides what a run trains, apart from which stores it reads.

The shipped ones are configs/trainer/*.yaml. Sizes that a store knows (token widths, numbers of classes) are
never written in one, so that the same recipe trains on any teacher's store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from contract import config
from trainer.device import Precision
from trainer.logs import Kind
from trainer.objectives import Objective
from trainer.ranges import Count, NotNegative, Positive, Share
from trainer.schedules import Schedule
from trainer.students import Student
from trainer.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream of pairs, such as `image-text`, or of the items of one modality, such as `image`.

    `store` is a path, or the dataset of a store given with --store ("": all of them). `inputs` and `targets`
    replace the recipe's for this stream, entry by entry; `languages` replaces its languages. `objectives` names
    those of the recipe that its batches are for (None: all); `transforms` rewrite its captions, one by one.
    `beside` names further modalities that are paired with the anchor, such as the sounds of images in `image-text`:
    a batch has their tokens too, of one item for each anchor, and only anchors that have one are drawn.
    """

    pair: str
    store: str = ""
    split: str = "train"
    weight: Positive = 1.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    languages: Literal["all"] | tuple[str, ...] | None = None
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    transforms: tuple[Transform, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Loshchilov and Hutter 2017 (arXiv 1711.05101); weight decay on matrices only, not on biases and norms."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What to do about embeddings whose spread on val falls under `below`: 1 is evenly spread, 0 a single point."""

    below: Annotated[float, Field(ge=0, le=1)] = 0.1
    action: Literal["warn", "stop"] = "warn"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The split val, every so many epochs; `metric` picks `best`.

    Any figure that a validation gives may be the metric, by the name that it has in metrics.jsonl: the mean of the
    trained directions (`R@1`, `rsum`, `mean_rank`), one direction's (`coco/text-to-image/R@1`), a neighbour
    classification's (`cifar10/image val among train/any@1`), or either under `ema/`. `rsum` is R@1 + R@5 + R@10: on
    a few hundred items it is steadier than any one of them. Training stops after `patience` validations without a
    better one.
    """

    every_epochs: Count = 1
    metric: str = "rsum"
    patience: Count | None = None
    collapse: Collapse = field(default_factory=Collapse)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The whole state, after every epoch and every `every_steps` steps; the newest `keep` of them stay."""

    every_steps: Count | None = None
    keep: Count = 2


@dataclass(frozen=True, kw_only=True)
class Ema:
    """A second student whose weights are w <- decay w + (1 - decay) v of the trained weights v, after each step.

    `warmup` takes min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: bool = True


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a step is computed. All but `checkpoint_activations` may change a figure's last digits.

    `compile` is torch.compile's mode, of the student's passes; `reduce-overhead` takes CUDA graphs.
    `checkpoint_activations` computes what lies inside a block again in the backward pass instead of keeping it.
    """

    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    checkpoint_activations: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run trains.

    `inputs` maps a modality to the stored field that the student reads; a modality that no store has is left
    out. `targets` maps a name that objectives use to a field of the pair's first modality. `expect` maps
    a field ("image/logits") to what must be true of it in every store, such as `{recipe: {model: resnet50}}`.
    `views` says what training sees of a store with several views: a random augmentation in each epoch, the
    evaluation view alone, or one of all of them. The checksums of what is read are verified in the first epoch
    and then every `verify_every_epochs` (0: never). A step takes `accumulate` batches one after the other and
    adds up their gradients: memory is that of one, and so are the negatives that an objective sees.
    `warm_start` is a finished run's folder, whose best student this one begins with. metrics.jsonl is always
    written; `logs` names further places for its figures.
    """

    name: str
    inputs: Mapping[str, str]
    targets: Mapping[str, str] = field(default_factory=dict)
    expect: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    streams: Literal["auto"] | tuple[StreamConfig, ...] = "auto"
    languages: Literal["all"] | tuple[str, ...] = ("en",)
    student: Student
    warm_start: str | None = None
    objectives: Annotated[
        Mapping[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Objective], Field(min_length=1)
    ]
    optimizer: AdamW = field(default_factory=AdamW)
    schedule: Schedule
    batch_size: Annotated[int, Field(ge=2)] = 256  # objectives compare the rows of a batch
    accumulate: Count = 1
    epochs: Count
    gradient_clip: Positive = 1.0
    ema: Ema | None = None
    precision: Precision = "auto"
    compute: Compute = field(default_factory=Compute)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    views: Literal["augmented", "evaluation", "all"] = "augmented"
    verify_every_epochs: Annotated[int, Field(ge=0)] = 10
    validation: Validation = field(default_factory=Validation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    log_every_steps: Count = 10
    logs: tuple[Kind, ...] = ()


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a tree, without what a resumed run may have otherwise: it changes nothing that is trained."""
    return {name: value for name, value in config.tree(recipe).items() if name not in ("checkpoints", "logs")}
