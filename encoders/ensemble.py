"""Several frozen teachers as one: their embeddings side by side, their distributions averaged.

    features   [D1 + D2 + ...]   each member's own, brought to unit length, so that the cosine of two rows is the
                                 mean of the members' cosines
    logits     [C]               log of the weighted mean of the members' softmax(logits / temperature)

Every member sees the same item, or the same augmented region of it, in the size and with the normalisation that are
its own, and runs once. Patch embeddings are those of the first member.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field as Annotation
from pydantic import PositiveFloat, PositiveInt

from contract.encodings import Float16, FloatEncoding, LogitsEncoding
from contract.encodings.encoding import log_softmax
from contract.errors import ConfigError
from contract.schema import Field
from contract.views import ImageView, JointView
from encoders.clip import ClipImage
from encoders.custom import CustomImage
from encoders.huggingface_image import HuggingFaceImage
from encoders.outputs import take
from encoders.timm_image import TimmImage

Member = Annotated[TimmImage | HuggingFaceImage | ClipImage | CustomImage, Annotation(discriminator="kind")]
NAMES = ("patch_embeddings", "features", "logits")
# What a member calls its vector of an item.
VECTORS = ("features", "embedding")


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    features: FloatEncoding = Float16()  # noqa: RUF009
    logits: LogitsEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Teachers of images; `weights` are those of the mean of their distributions, equal unless given.

    A member's own `take` says what of it the ensemble is made of: `features` or `embedding`, `logits`, and of the
    first `patch_embeddings`. How many views go through at once, and how they are stored, is the ensemble's to say.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Member, ...]
    weights: tuple[PositiveFloat, ...] | None = None
    take: tuple[str, ...] | None = None
    batch_size: PositiveInt = 64
    encodings: Encodings = field(default_factory=Encodings)

    def __post_init__(self) -> None:
        """Refuse what is no ensemble, and settings that would not be looked at."""
        if len(self.members) < 2:
            raise ConfigError(f"ensemble: members has {len(self.members)}; an ensemble has two or more")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ConfigError(f"ensemble: {len(self.weights)} weights for {len(self.members)} members")
        for number, member in enumerate(self.members):
            for key in ("batch_size", "encodings"):
                if getattr(member, key) != _default(member, key):
                    raise ConfigError(
                        f"ensemble: members.{number}.{key}: the ensemble's own {key} is the one that counts"
                    )
            for name in member.take or ():
                if name not in (*VECTORS, "logits", *(["patch_embeddings"] if number == 0 else [])):
                    raise ConfigError(
                        f"ensemble: members.{number}.take: {name!r} is no part of an ensemble, which is made of "
                        "features or embedding, logits, and of the first member's patch_embeddings"
                    )

    @property
    def vectors(self) -> tuple[str, ...]:
        """What each member calls its vector of an item; "" without one."""
        return tuple(map(_vector, self._fields))

    def view(self) -> ImageView | JointView:
        """What all members are shown, or what each of them is."""
        views = tuple(member.view() for member in self.members)
        return views[0] if len(set(views)) == 1 else JointView(views=views)

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` of the first member; `features` and `logits`, if every member has its part of them."""
        for name in ("features", "logits"):
            if name in (self.take or ()) and name in self._lacking:
                raise ConfigError(f"take: there can be no {name}: {self._lacking[name]}")
        found = tuple(self._given())
        if not {"features", "logits"} & {field.name for field in take(found, self.take, NAMES)}:
            reasons = "; ".join(self._lacking.values()) or "take names neither"
            raise ConfigError(f"ensemble: there are neither features nor logits of all members: {reasons}")
        if self.weights is not None and "logits" in self._lacking:
            raise ConfigError(f"weights: they are of the mean of distributions, and {self._lacking['logits']}")
        return take(found, self.take, NAMES)

    def recipe(self) -> Mapping[str, Any]:
        """The members' own, and their weights."""
        members = [dict(member.recipe()) for member in self.members]
        return {"kind": self.kind, "members": members, "weights": self._weights.tolist()}

    def notes(self) -> tuple[str, ...]:
        """The members' own, and what is left out since a member lacks it."""
        lines = [f"members.{n}: {line}" for n, member in enumerate(self.members) for line in member.notes()]
        left_out = [f"no {name}: {reason}" for name, reason in self._lacking.items() if self.take is None]
        return (*lines, *left_out)

    def build(self, device: str) -> _Model:
        """All members with their weights, on `device`."""
        return _Model(self, device)

    def _given(self) -> Iterator[Field]:
        """Every field that there can be."""
        first = self._fields[0].get("patch_embeddings")
        if first is not None:
            yield replace(first, encoding=self.encodings.patch_embeddings)
        if "features" not in self._lacking:
            parts = [fields[_vector(fields)] for fields in self._fields]
            widths = [part.shape[0] for part in parts]
            about = {"parts": [part.name for part in parts], "widths": widths, "parts_normalised": True}
            yield Field(name="features", shape=(sum(widths),), encoding=self.encodings.features, about=about)
        if "logits" not in self._lacking:
            shape = self._fields[0]["logits"].shape
            yield Field(name="logits", shape=shape, encoding=self.encodings.logits, about={"temperature": 1.0})

    @cached_property
    def _fields(self) -> tuple[dict[str, Field], ...]:
        """What each member gives, by name."""
        found = tuple({field.name: field for field in member.fields()} for member in self.members)
        for number, fields in enumerate(found):
            if set(VECTORS) <= set(fields):
                raise ConfigError(
                    f"ensemble: members.{number}: it gives {' and '.join(VECTORS)}; name one in its `take`"
                )
        return found

    @cached_property
    def _lacking(self) -> dict[str, str]:
        """Which of `features` and `logits` there can't be, and why."""
        found = {}
        for name, of_member in (("features", _vector), ("logits", _distribution)):
            without = [number for number, fields in enumerate(self._fields) if not of_member(fields)]
            if without:
                found[name] = f"members.{without[0]} ({self.members[without[0]].kind}) gives none"
        if "logits" not in found:
            classes = [fields["logits"].shape[0] for fields in self._fields]
            if len(set(classes)) > 1:
                found["logits"] = f"the members have different numbers of classes, {', '.join(map(str, classes))}"
        return found

    @cached_property
    def _running(self) -> tuple[Any, ...]:
        """The members, each with no more to give than what is stored of it."""
        wanted = {field.name for field in self.fields()}
        running = []
        for number, (member, fields) in enumerate(zip(self.members, self._fields, strict=True)):
            names = [_vector(fields)] if "features" in wanted else []
            names += ["logits"] if "logits" in wanted else []
            names += ["patch_embeddings"] if number == 0 and "patch_embeddings" in wanted else []
            running.append(replace(member, take=tuple(names)))
        return tuple(running)

    @property
    def _weights(self) -> npt.NDArray[np.float64]:
        """They sum to 1."""
        weights: npt.NDArray[np.float64] = np.array(self.weights or [1.0] * len(self.members), np.float64)
        weights /= weights.sum()
        return weights


class _Model:
    """The built members."""

    def __init__(self, config: Ensemble, device: str) -> None:
        self._names = [field.name for field in config.fields()]
        self._vectors = config.vectors
        self._is_joint = isinstance(config.view(), JointView)
        self._weights = config._weights
        self._temperatures = [
            fields["logits"].about["temperature"] if "logits" in self._names else 1.0 for fields in config._fields
        ]
        self._models = [member.build(device) for member in config._running]

    def __call__(self, views: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        """n views, or n tuples of one for each member -> {field: float32 [n, ...]}."""
        shown = zip(*views, strict=True) if self._is_joint else [views] * len(self._models)
        outputs = [model(list(one)) for model, one in zip(self._models, shown, strict=True)]
        made = {}
        if "patch_embeddings" in self._names:
            made["patch_embeddings"] = outputs[0]["patch_embeddings"]
        if "features" in self._names:
            parts = [_unit(one[name]) for one, name in zip(outputs, self._vectors, strict=True)]
            made["features"] = np.concatenate(parts, axis=1)
        if "logits" in self._names:
            of_each = zip(outputs, self._temperatures, self._weights, strict=True)
            logs = [
                log_softmax(one["logits"].astype(np.float64) / temperature) + np.log(weight)
                for one, temperature, weight in of_each
            ]
            made["logits"] = np.logaddexp.reduce(logs).astype(np.float32)
        return made

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}


def _default(member: Any, key: str) -> Any:
    (found,) = (field for field in dataclasses.fields(member) if field.name == key)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def _vector(fields: Mapping[str, Field]) -> str:
    """What a member calls its vector of an item; "" without one."""
    return next((name for name in VECTORS if name in fields and len(fields[name].shape) == 1), "")


def _distribution(fields: Mapping[str, Field]) -> bool:
    """Whether a member's logits are of classes of which one is true."""
    return "logits" in fields and "temperature" in fields["logits"].about


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows float32 [n, D] of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
