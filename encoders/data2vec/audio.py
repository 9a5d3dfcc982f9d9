"""data2vec's audio models: the convolutions' vector of each frame, and what a student regresses for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32
from contract.schema import Field
from contract.views import AudioView
from encoders import pretrained, waveforms, weights
from encoders.data2vec.targets import Kind, Normalisation, Targets, Version, settle
from encoders.outputs import Caught, Precision, autocast, take

if TYPE_CHECKING:
    import torch

DEFAULT = ("patch_embeddings", "targets", "length")


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    targets: FloatEncoding = Float16()  # noqa: RUF009
    features: FloatEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Data2VecAudio:
    """A data2vec-audio model of transformers: a hub name or a folder, as `Data2VecAudioModel` loads it.

    It hears the first `duration_s` seconds. `targets`, `k` and `normalise` choose the targets
    (encoders/data2vec/targets.py), by default the published ones of the `version`.
    """

    kind: Literal["data2vec_audio"] = "data2vec_audio"
    model: str
    targets: Kind = "topk_mean"
    k: PositiveInt | None = None
    normalise: Normalisation | None = None
    version: Version = 1
    take: tuple[str, ...] | None = None
    duration_s: PositiveFloat = 10.0
    precision: Precision = "float32"
    batch_size: PositiveInt = 16
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> AudioView:
        """The start of the sound, mono, at the rate of the model's feature extractor."""
        return AudioView(sample_rate_hz=self._extractor.sampling_rate, duration_s=self.duration_s)

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` [T, C] and `targets` [T, D], row for row the same frames, and their `length`.

        `features` [D], which `take` adds: the mean of the last block over the frames, the teacher's own embedding.
        """
        num_frames = waveforms.num_frames(self._config, self.view().num_samples)
        about = waveforms.about(self._config, self.view().sample_rate_hz)
        fields = (
            Field(
                name="patch_embeddings",
                shape=(num_frames, self._config.conv_dim[-1]),
                encoding=self.encodings.patch_embeddings,
                about=about,
            ),
            Field(
                name="targets",
                shape=(num_frames, self._config.hidden_size),
                encoding=self.encodings.targets,
                about=self._targets.about() | about,
            ),
            Field(
                name="features",
                shape=(self._config.hidden_size,),
                encoding=self.encodings.features,
                about={"pooling": "mean"},
            ),
            Field(name="length", shape=(), encoding=Int32()),
        )
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, wherever they lie, preprocessing, targets, duration, precision."""
        return {
            "kind": self.kind,
            "weights": weights.folder_fingerprint(self._folder),
            "targets": self._targets.about(),
            "preprocessing": waveforms.preprocessing(self._extractor),
            "duration_s": self.duration_s,
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """Nothing of the model's own preprocessing is overridden."""
        return ()

    def build(self, device: str) -> _AudioModel:
        """The model with its weights, on `device`."""
        return _AudioModel(self, device)

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _config(self) -> Any:
        return pretrained.read_config(self._folder, self.model, "data2vec-audio")

    @cached_property
    def _extractor(self) -> Any:
        return waveforms.read_extractor(self._folder, self.model)

    @cached_property
    def _targets(self) -> Targets:
        return settle(self, "audio", self._config.num_hidden_layers)


class _AudioModel:
    def __init__(self, config: Data2VecAudio, device: str) -> None:
        self._targets, self._device = config._targets, device
        self._batches = waveforms.Batches(config._extractor, config._config, config.fields())
        self._model = pretrained.load("AutoModel", config._folder, config.model, unused=waveforms.UNUSED).to(device)
        waveforms.keep_positions_exact(self._model, device)
        self._caught = Caught(
            self._model,
            {"patch_embeddings": "feature_extractor"}
            | self._targets.modules("encoder.layers.{}", "encoder.layers.{}.feed_forward"),
        )
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[waveforms.Sound]) -> dict[str, npt.NDArray[Any]]:
        """n sounds, float32 [samples] -> patch_embeddings, targets float32 [n, T, D], zero after `length` [n].

        And features float32 [n, D].
        """
        return self._batches.run(views, self._outputs)

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}

    def _outputs(self, sounds: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        self._caught.clear()
        with torch.inference_mode():
            with self._autocast:
                last = self._model(sounds.to(self._device)).last_hidden_state
            frames = self._caught["patch_embeddings"].transpose(1, 2)
            return {
                "patch_embeddings": frames,
                "targets": self._targets.of(self._caught),
                "features": last.float().mean(dim=1),
            }
