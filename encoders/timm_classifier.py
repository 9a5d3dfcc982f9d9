"""Image classifiers of timm: patch embeddings, pooled features and class logits from one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from contract import fingerprint
from contract.encodings import Float16, FloatEncoding, LogitsEncoding, PatchEncoding, Pixels
from contract.encodings.pixels import folded
from contract.errors import ConfigError, DataError
from contract.schema import Field
from contract.views import ImageView
from contract.views.image import CropMode, Interpolation
from encoders import weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What may override the model's own data configuration; None leaves it as it is."""

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Interpolation | None = None
    crop_pct: PositiveFloat | None = None
    crop_mode: CropMode | None = None


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: PatchEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    features: FloatEncoding = Float16()  # noqa: RUF009
    logits: LogitsEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class TimmClassifier:
    """Any classifier of timm, with weights from timm's hub or from a local file.

    `model` is timm's name; `model_args` go to `timm.create_model`; `checkpoint` is a file (None: timm's own, from
    the hub or its local cache). `tokens` names the module whose output becomes `patch_embeddings`: by default the
    linear patch embedding of a ViT, and the last stage's feature map of anything else. Preprocessing is the
    model's own; `preprocessing` overrides parts of it. A model without classes has no logits.
    """

    kind: Literal["timm"] = "timm"
    model: str
    checkpoint: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    tokens: str | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: PositiveInt = 64
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> ImageView:
        """The evaluation crop of the model's data configuration."""
        data = self._data
        _, height, width = data["input_size"]
        try:
            return ImageView(
                height=height,
                width=width,
                crop_pct=data["crop_pct"],
                crop_mode=_one_of("crop_mode", data["crop_mode"], get_args(CropMode)),
                interpolation=_one_of("interpolation", data["interpolation"], get_args(Interpolation)),
            )
        except ValueError as error:
            raise ConfigError(f"timm model {self.model}: {error}; override it under `preprocessing`") from error

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` [T, D], `features` [D], `logits` [C]."""
        import torch

        with torch.device("meta"):
            model = self._create()
            outputs = _Outputs(model, self._tokens_module(model))
            try:
                made = outputs(torch.zeros(1, *self._data["input_size"]))
            except (AssertionError, RuntimeError) as error:
                size = list(self._data["input_size"])
                raise ConfigError(f"timm model {self.model} does not take inputs of {size}: {error}") from error
        shapes = {name: tuple(value.shape[1:]) for name, value in made.items()}
        about: dict[str, dict[str, Any]] = {
            "patch_embeddings": {"module": self._tokens_module(model), "grid": list(outputs.grid)},
            # Softmax of the stored values themselves is the classifier's distribution.
            "logits": {"temperature": 1.0},
        }
        encodings = {name: getattr(self.encodings, name) for name in shapes}
        if self._stores_pixels:
            self._require_linear(model)
            view = self.view()
            encodings["patch_embeddings"] = Pixels(height=view.height, width=view.width)
        return tuple(
            Field(name=name, shape=shape, encoding=encodings[name], about=about.get(name, {}))
            for name, shape in shapes.items()
        )

    def recipe(self) -> Mapping[str, Any]:
        """Model, arguments, hash of the weights file, preprocessing, precision."""
        data = self._data
        return {
            "kind": self.kind,
            "model": self.model,
            "model_args": self.model_args,
            "weights": fingerprint.of_file(self._weights()),
            "tokens": self.tokens,
            "view": asdict(self.view()),
            "mean": list(data["mean"]),
            "std": list(data["std"]),
            "precision": self.precision,
        }

    def build(self, device: str) -> _TimmModel:
        """The model with its weights, on `device`."""
        model = self._create()
        path = self._weights()
        _load(model, path)
        return _TimmModel(
            model=model.to(device),
            tokens=self._tokens_module(model),
            data=self._data,
            precision=self.precision,
            device=device,
            stores_pixels=self._stores_pixels,
        )

    @property
    def _stores_pixels(self) -> bool:
        return isinstance(self.encodings.patch_embeddings, Pixels)

    @cached_property
    def _data(self) -> dict[str, Any]:
        import timm.data

        overrides = {key: value for key, value in asdict(self.preprocessing).items() if value is not None}
        resolved = timm.data.resolve_data_config(overrides, pretrained_cfg=self._pretrained)
        size = self.model_args.get("img_size")
        if size is not None and "input_size" not in overrides:
            height, width = (size, size) if isinstance(size, int) else size
            resolved["input_size"] = (3, height, width)
        return dict(resolved)

    @cached_property
    def _pretrained(self) -> dict[str, Any]:
        import timm

        if not timm.is_model(self.model):
            close = timm.list_models(f"*{self.model.partition('.')[0]}*")[:5]
            raise ConfigError(f"timm has no model {self.model!r}{'; it has ' + ', '.join(close) if close else ''}")
        # A tag after the model's name that timm does not know must not fall back to another checkpoint.
        base, _, tag = self.model.partition(".")
        if tag and self.model not in timm.list_models(f"{base}*", pretrained=True):
            raise ConfigError(f"timm has no pretrained weights {self.model!r}")
        found = timm.get_pretrained_cfg(self.model)
        return dict(found.to_dict()) if found is not None else {}

    def _create(self) -> torch.nn.Module:
        import timm

        _ = self._pretrained
        try:
            model: torch.nn.Module = timm.create_model(self.model, pretrained=False, **self.model_args)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ConfigError(f"timm model {self.model} with model_args {self.model_args}: {error}") from error
        return model.eval().requires_grad_(False)

    def _weights(self) -> Path:
        if self.checkpoint is not None:
            return weights.find_file(self.checkpoint)
        repository = self._pretrained.get("hf_hub_id")
        if not repository:
            raise ConfigError(f"timm model {self.model} has no weights on the hub; give `checkpoint`")
        return weights.of_hub_file(repository, "model.safetensors")

    def _require_linear(self, model: torch.nn.Module) -> None:
        """Refuse to store pixels for tokens that are not a linear map of one patch each."""
        import torch

        embedding: Any = getattr(model, "patch_embed", None)
        projection, view = getattr(embedding, "proj", None), self.view()
        if not (
            self._tokens_module(model) == "patch_embed"
            and isinstance(projection, torch.nn.Conv2d)
            and projection.weight.shape[1] == 3
            and projection.kernel_size == projection.stride
            and projection.kernel_size[0] == projection.kernel_size[1]
            and projection.padding == (0, 0)
            and view.height % projection.kernel_size[0] == view.width % projection.kernel_size[0] == 0
            and isinstance(getattr(embedding, "norm", None), torch.nn.Identity)
        ):
            raise ConfigError(
                f"encodings.patch_embeddings: the tokens of timm model {self.model} are not a linear map of square "
                "patches (as a plain ViT's are); choose another encoding than pixels"
            )

    def _tokens_module(self, model: torch.nn.Module) -> str:
        if self.tokens is not None:
            if self.tokens not in dict(model.named_modules()):
                raise ConfigError(f"tokens: timm model {self.model} has no module {self.tokens!r}")
            return self.tokens
        last: dict[str, Any] = model.feature_info[-1]  # type: ignore[index,assignment]
        patch_embed = getattr(model, "patch_embed", None)
        # Only in a model of one resolution (ViT) is the patch embedding what all its blocks work on.
        is_plain = patch_embed is not None and getattr(model, "embed_dim", None) == last["num_chs"]
        module = "patch_embed" if is_plain else str(last["module"])
        if module not in dict(model.named_modules()):
            raise ConfigError(f"timm model {self.model} has no module {module!r}; name one as `tokens`")
        return module


class _Outputs:
    """The three outputs of one forward pass: a hook catches the tokens on the way."""

    def __init__(self, model: torch.nn.Module, tokens: str) -> None:
        self._model = model
        self._caught: list[torch.Tensor] = []
        self.grid: tuple[int, ...] = ()
        model.get_submodule(tokens).register_forward_hook(
            lambda module, inputs, output: self._caught.append(output)
        )

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Float [n, 3, h, w] -> patch_embeddings [n, T, D], features [n, D], logits [n, C]."""
        self._caught.clear()
        final = self._model.forward_features(images)  # type: ignore[operator]
        features = self._model.forward_head(final, pre_logits=True)  # type: ignore[operator]
        if not self._caught:
            raise ConfigError("`tokens`: nothing passes through the module; name another")
        outputs = {"patch_embeddings": self._as_tokens(self._caught[0]), "features": features}
        if getattr(self._model, "num_classes", 0):
            outputs["logits"] = self._model.forward_head(final)  # type: ignore[operator]
        return outputs

    def _as_tokens(self, output: Any) -> torch.Tensor:
        """The module's output as tokens [n, T, D], whichever of [n, T, D], [n, D, h, w] and [n, h, w, D] it is."""
        shape = tuple(getattr(output, "shape", ()))
        if len(shape) == 3:
            patch_embed = getattr(self._model, "patch_embed", None)
            self.grid = tuple(getattr(patch_embed, "grid_size", None) or shape[1:2])
            return cast("torch.Tensor", output)
        stages: Any = self._model.feature_info
        widths = [*(stage["num_chs"] for stage in stages), getattr(self._model, "embed_dim", None)]
        if len(shape) != 4 or not (shape[1] in widths or shape[3] in widths):
            raise ConfigError(f"`tokens`: the module gives {list(shape)}, which are no patches; name another")
        maps = output if shape[1] in widths else output.permute(0, 3, 1, 2)
        self.grid = tuple(maps.shape[2:])
        return cast("torch.Tensor", maps.flatten(2).transpose(1, 2))


class _TimmModel:
    """A built classifier: uint8 views in, float32 fields out."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        tokens: str,
        data: Mapping[str, Any],
        precision: str,
        device: str,
        stores_pixels: bool,
    ) -> None:
        import torch

        self._model = model
        self._stores_pixels = stores_pixels
        self._outputs = _Outputs(model, tokens)
        self._device = device
        self._mean = torch.tensor(data["mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(data["std"], device=device).view(1, 3, 1, 1)
        self._autocast = torch.autocast(
            torch.device(device).type, getattr(torch, precision), enabled=precision != "float32"
        )

    def __call__(self, views: Sequence[npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[Any]]:
        """n views, uint8 [h, w, 3] -> {field: float32 [n, ...]}, and "patch_embeddings.pixels" if stored."""
        import torch

        stacked = np.stack(views)
        pixels = torch.from_numpy(stacked).to(self._device).permute(0, 3, 1, 2)
        with torch.inference_mode(), self._autocast:
            outputs = self._outputs((pixels.float() / 255 - self._mean) / self._std)
        fields: dict[str, npt.NDArray[Any]] = {name: value.float().cpu().numpy() for name, value in outputs.items()}
        return fields | ({"patch_embeddings.pixels": stacked} if self._stores_pixels else {})

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The patch embedding, the pixels' normalisation folded in, if pixels are stored."""
        if not self._stores_pixels:
            return {}
        projection: Any = self._model.patch_embed.proj  # type: ignore[union-attr]
        weight = projection.weight.float().cpu().numpy()
        bias = (
            np.zeros(len(weight), np.float32) if projection.bias is None else projection.bias.float().cpu().numpy()
        )
        mean, std = (values.flatten().cpu().numpy() for values in (self._mean, self._std))
        folded_in = folded(weight, bias, mean, std)
        return {f"patch_embeddings.{name}": array for name, array in folded_in.items()}


def _load(model: torch.nn.Module, path: Path) -> None:
    import timm.models

    try:
        model.load_state_dict(timm.models.load_state_dict(str(path), weights_only=True), strict=True)
    except Exception as error:  # safetensors, torch and pickle each raise their own for a file that is none
        reason = " ".join(str(error).split())
        raise DataError(f"checkpoint {path} can't be loaded into the model: {reason[:200]}") from error


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{key} {value!r} is not one of {', '.join(allowed)}")
    return value
