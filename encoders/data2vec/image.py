"""data2vec's vision models: the linear projection of each patch, and what a student regresses for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from contract.encodings import Float16, FloatEncoding
from contract.schema import Field
from contract.views import ImageView
from encoders import image_processor, pretrained, weights
from encoders.data2vec.targets import Kind, Normalisation, Targets, Version, settle
from encoders.image_processor import Preprocessing, Processing
from encoders.outputs import Caught, Precision, autocast, take, to_numpy

DEFAULT = ("patch_embeddings", "targets")


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    targets: FloatEncoding = Float16()  # noqa: RUF009
    features: FloatEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Data2VecImage:
    """A data2vec-vision model of transformers: a hub name or a folder, as `Data2VecVisionModel` loads it.

    `targets`, `k` and `normalise` choose the targets (encoders/data2vec/targets.py), by default the published
    ones of the `version`. Preprocessing is the model's own; `preprocessing` overrides parts of it.
    """

    kind: Literal["data2vec_image"] = "data2vec_image"
    model: str
    targets: Kind = "topk_mean"
    k: PositiveInt | None = None
    normalise: Normalisation | None = None
    version: Version = 1
    take: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    precision: Precision = "float32"
    batch_size: PositiveInt = 64
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> ImageView:
        """The crop that the model's image processor makes."""
        return self._processing.view

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` and `targets` [T, D]: row t of both is patch t of the grid, row by row; no CLS.

        `features` [D], which `take` adds: the mean of the last block over the patches, the teacher's own embedding.
        """
        patch = self._config.patch_size
        view = self.view()
        grid = [view.height // patch, view.width // patch]
        shape = (grid[0] * grid[1], self._config.hidden_size)
        # The model puts CLS in front of the patches; it is not among the rows.
        prefix = {"num_prefix_tokens": 1, "num_cls_tokens": 1, "num_register_tokens": 0}
        geometry = {"grid": grid, "patch_size": [patch, patch]} | prefix
        fields = (
            Field(name="patch_embeddings", shape=shape, encoding=self.encodings.patch_embeddings, about=geometry),
            Field(
                name="targets", shape=shape, encoding=self.encodings.targets, about=self._targets.about() | geometry
            ),
            Field(name="features", shape=shape[1:], encoding=self.encodings.features, about={"pooling": "mean"}),
        )
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, wherever they lie, targets, preprocessing, precision."""
        return {
            "kind": self.kind,
            "weights": weights.folder_fingerprint(self._folder),
            "targets": self._targets.about(),
            "preprocessing": self._processing.recipe(),
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """One line for each override of the model's own preprocessing."""
        return self._processing.notes

    def build(self, device: str) -> _ImageModel:
        """The model with its weights, on `device`."""
        return _ImageModel(self, device)

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _config(self) -> Any:
        return pretrained.read_config(self._folder, self.model, "data2vec-vision")

    @cached_property
    def _processing(self) -> Processing:
        return image_processor.read(self._folder, self.preprocessing)

    @cached_property
    def _targets(self) -> Targets:
        return settle(self, "image", self._config.num_hidden_layers)


class _ImageModel:
    def __init__(self, config: Data2VecImage, device: str) -> None:
        self._processing, self._targets, self._device = config._processing, config._targets, device
        self._names = [field.name for field in config.fields()]
        self._model = pretrained.load("AutoModel", config._folder, config.model).to(device)
        self._caught = Caught(
            self._model,
            {"patch_embeddings": "embeddings.patch_embeddings"}
            | self._targets.modules("encoder.layer.{}", "encoder.layer.{}.output"),
        )
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[Any]]:
        """n views, uint8 [h, w, 3] -> patch_embeddings, targets float32 [n, T, D], features float32 [n, D]."""
        import torch

        self._caught.clear()
        with torch.inference_mode():
            with self._autocast:
                last = self._model(self._processing.normalise(views, self._device)).last_hidden_state
            patches, _ = self._caught["patch_embeddings"]
            outputs = {
                "patch_embeddings": patches,
                "targets": self._targets.of(self._caught, num_before=1),
                "features": last[:, 1:].float().mean(dim=1),
            }
        return to_numpy(outputs, self._names)

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}
