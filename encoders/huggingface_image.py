"""Image models of transformers, classifiers and backbones: any field of `image_model` from one forward pass."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from contract.errors import ConfigError
from contract.schema import Field
from contract.views import ImageView
from encoders import image_processor, pretrained, weights
from encoders.image_model import (
    DEFAULT,
    NAMES,
    Encodings,
    ImageModel,
    as_tokens,
    described,
    geometry,
    grid_of,
    split,
)
from encoders.image_processor import Preprocessing, Processing
from encoders.outputs import Caught, Precision, take

if TYPE_CHECKING:
    import torch

PATCHES = ("patch_embeddings", "patch_embedding")
CLASSIFIERS = ("classifier", "cls_classifier")
CLS_TOKENS = ("cls_token", "class_embedding", "class_token")
# Drawn for masked training alone.
UNUSED = (r".*mask_token$",)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceImage:
    """Any image classifier or image backbone of transformers, loaded as the class that its config.json names.

    `model` is a hub name, a local folder, or `package:NAME/FOLDER`. `patch_embeddings` are what the patch
    projection gives, and of a model whose last layer has other patches (Swin, ConvNeXt, ResNet) the last layer's;
    `tokens` names another module for them. `features` are what the classifier is given, or a backbone's own
    pooled output; a backbone whose checkpoint lacks the weights of its pooler has none. `take` names the fields
    that are stored (None: patch_embeddings, features and logits, those that there are). Preprocessing is the
    model's own image processor's; `preprocessing` overrides parts.
    """

    kind: Literal["huggingface_image"] = "huggingface_image"
    model: str
    tokens: str | None = None
    take: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    precision: Precision = "float32"
    batch_size: PositiveInt = 64
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> ImageView:
        """What the model's image processor makes of an image."""
        return self._processing.view

    def fields(self) -> tuple[Field, ...]:
        """Those of `take`: see `image_model`."""
        import torch
        import transformers

        made = getattr(transformers, self._class)
        with torch.device("meta"), weights.quiet():
            model = made.from_config(self._config) if self._class == "AutoModel" else made(self._config)
            names = [name for name in NAMES if name != "features" or not self._lacks_pooler(model)]
            outputs = self._outputs(model.eval())
            fields = described(outputs, self._processing, self.encodings, names, f"model {self.model}")
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Class, hash of the model's files, preprocessing, precision."""
        return {
            "kind": self.kind,
            "class": self._class,
            "weights": weights.folder_fingerprint(self._folder),
            "tokens": self.tokens,
            **self._processing.recipe(),
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """One line for each override of the model's own preprocessing."""
        return self._processing.notes

    def build(self, device: str) -> ImageModel:
        """The model with its weights, on `device`."""
        names = [field.name for field in self.fields()]
        unused = [rf"{name}\." for name in CLASSIFIERS if "logits" not in names]
        unused += [r"pooler\."] if "features" not in names else []
        model = pretrained.load(self._class, self._folder, self.model, unused=(*UNUSED, *unused))
        return ImageModel(
            self._outputs(model.to(device)),
            names=names,
            processing=self._processing,
            precision=self.precision,
            device=device,
            stores_pixels=self.encodings.stores_pixels,
        )

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _config(self) -> Any:
        config = pretrained.read_config(self._folder, self.model)
        if config.model_type == "vit_mae":
            raise ConfigError(f"model {self.model}: a ViTMAE masks patches at random; save it as a ViT (ViTModel)")
        return config

    @cached_property
    def _class(self) -> str:
        """The classifier's class that config.json names, so that no head is drawn at random; or AutoModel."""
        from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

        known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(self._config), ())
        classes = {made.__name__ for made in (known if isinstance(known, tuple) else (known,))}
        named = [name for name in self._config.architectures or () if name in classes]
        return named[0] if named else "AutoModel"

    @cached_property
    def _processing(self) -> Processing:
        return image_processor.read(self._folder, self.preprocessing)

    def _lacks_pooler(self, model: torch.nn.Module) -> bool:
        """Whether the backbone's pooler would be drawn at random."""
        if self._class != "AutoModel" or not any(name.startswith("pooler.") for name in model.state_dict()):
            return False
        return not any("pooler." in name for name in weights.names(self._folder))

    def _outputs(self, model: Any) -> TowerOutputs:
        towers = (model.base_model_prefix, "vision_model") if self._class != "AutoModel" else ()
        tower = next((name for name in towers if name in dict(model.named_children())), "")
        return TowerOutputs(model, tower, self.tokens, self.model)


class TowerOutputs:
    """The outputs of one forward pass of `model`, whose images go through its part `tower` ("": all of it).

    `tokens` names the module that gives the patch embeddings, None for the usual one; `name` is the model's.
    """

    def __init__(self, model: Any, tower: str, tokens: str | None, name: str) -> None:
        self._model, self._name = model, name
        self._config = config = getattr(model.config, "vision_config", model.config)
        if tokens is not None and tokens not in dict(model.named_modules()):
            raise ConfigError(f"tokens: model {name} has no module {tokens!r}")
        self._is_named = tokens is not None
        self._tokens = tokens if tokens is not None else _patches_module(model, tower)
        self._caught = Caught(model, {"tokens": self._tokens} if self._tokens else {})
        self._seen: dict[str, Any] = {}
        model.get_submodule(tower).register_forward_hook(self._see)
        self._classifier = next((part for part in CLASSIFIERS if part in dict(model.named_children())), None)
        if self._classifier:
            model.get_submodule(self._classifier).register_forward_pre_hook(self._see_classified)
        parts = {name.rpartition(".")[2] for name, _ in model.get_submodule(tower).named_parameters()}
        self._has_cls = bool(parts & set(CLS_TOKENS))
        self._num_registers = int(getattr(config, "num_register_tokens", None) or 0)
        # DINOv3's ConvNeXt puts the mean of its patches before them.
        num_other = int("distillation_token" in parts) + int(config.model_type == "dinov3_convnext")
        self._num_prefix = int(self._has_cls) + num_other + self._num_registers
        self._is_plain = False
        self.about: dict[str, dict[str, Any]] = {}

    @property
    def projection(self) -> torch.nn.Module | None:
        """The convolution that gives the patch embeddings, if one does."""
        is_usual = self._is_plain and not self._is_named
        return self._model.get_submodule(self._tokens) if is_usual and self._tokens else None

    def __call__(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Float [n, 3, h, w] -> of the named fields those that the model has."""
        outputs = self.forward(self._model, images)
        made = {name: value for name, value in self.parts(images).items() if name in names}
        if "logits" in names and self._classifier:
            made["logits"] = outputs.logits
            # Softmax of the stored values themselves is the classifier's distribution.
            self.about["logits"] = {"temperature": 1.0, "num_labels": int(self._model.config.num_labels)}
        return made

    def forward(self, function: Any, images: torch.Tensor, **inputs: Any) -> Any:
        """What the model, or a method of it, gives for the images."""
        self._caught.clear()
        self._seen.clear()
        size = getattr(self._config, "image_size", None)
        trained = tuple(size) if isinstance(size, list | tuple) else (size, size)
        call = getattr(function, "forward", function)
        if images.shape[2:] != trained and "interpolate_pos_encoding" in inspect.signature(call).parameters:
            inputs["interpolate_pos_encoding"] = True
        return function(pixel_values=images, **inputs)

    def parts(self, images: torch.Tensor, grid: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
        """After a forward pass, every field but the heads'; `grid` is the patches', where images do not tell."""
        made = self._last_layer((images.shape[2], images.shape[3]), grid)
        if made or self._is_named:
            made["patch_embeddings"] = self._patch_embeddings(made.get("patch_features"), images)
        if self._seen.get("features") is not None:
            made["features"] = self._seen["features"].flatten(1)
            self.about["features"] = {"from": "classifier's input" if self._classifier else "pooler_output"}
        return made

    def _last_layer(self, size: tuple[int, int], grid: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """`patch_features`, `cls` and `registers`; {} of a model that does not give its last layer."""
        last = self._seen["last"]
        if last is None:
            return {}
        if last.ndim == 4:
            self.about["patch_features"] = self._geometry(tuple(last.shape[2:]), size, has_prefix=False)
            return {"patch_features": as_tokens(last)}
        made = split(last, self._num_prefix, self._num_registers, self._has_cls)
        num_patches = made["patch_features"].shape[1]
        grid = grid or self._projected_grid()
        self._is_plain = len(grid) == 2 and math.prod(grid) == num_patches
        grid = grid if self._is_plain else grid_of(max(1, num_patches), *size)
        self.about["patch_features"] = self._geometry(grid, size)
        return made

    def _patch_embeddings(self, last: torch.Tensor | None, images: torch.Tensor) -> torch.Tensor:
        if last is not None and not self._is_named and not (self._is_plain and self._tokens):
            self.about["patch_embeddings"] = {"module": "last_hidden_state", **self.about["patch_features"]}
            return last
        try:
            output = self._caught["tokens"]
        except KeyError as error:
            raise ConfigError(f"tokens: nothing passes through module {self._tokens!r} of {self._name}") from error
        output = output[0] if isinstance(output, tuple) else output
        if getattr(output, "ndim", 0) not in (3, 4) or len(output) != len(images):
            shape = list(getattr(output, "shape", ()))
            raise ConfigError(
                f"tokens: module {self._tokens!r} of {self._name} gives {shape}, which are no patches"
            )
        size = (images.shape[2], images.shape[3])
        if output.ndim == 4:
            grid, tokens = tuple(output.shape[2:]), as_tokens(output)
        else:
            grid, tokens = grid_of(output.shape[1], *size), output
        self.about["patch_embeddings"] = {"module": self._tokens, **self._geometry(grid, size)}
        return tokens

    def _geometry(self, grid: tuple[int, ...], size: tuple[int, int], has_prefix: bool = True) -> dict[str, Any]:
        patch = getattr(self._config, "patch_size", None)
        known = [patch] if isinstance(patch, list | tuple) else [(patch, patch)] if isinstance(patch, int) else []
        return geometry(grid, size, known) | {
            "num_prefix_tokens": self._num_prefix if has_prefix else 0,
            "num_cls_tokens": int(self._has_cls and has_prefix),
            "num_register_tokens": self._num_registers if has_prefix else 0,
        }

    def _projected_grid(self) -> tuple[int, ...]:
        output: Any = self._caught["tokens"] if self._tokens and not self._is_named else None
        return tuple(output.shape[2:]) if output is not None and output.ndim == 4 else ()

    def _see(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        # Copied out at once: CLIP's own code puts the projection in the place of the pooled output.
        self._seen["last"] = getattr(output, "last_hidden_state", None)
        if not self._classifier:
            self._seen["features"] = getattr(output, "pooler_output", None)

    def _see_classified(self, module: torch.nn.Module, inputs: Any) -> None:
        self._seen["features"] = inputs[0]


def _patches_module(model: Any, tower: str) -> str:
    """The convolution of the patch projection; "" if there is none."""
    for name, module in model.get_submodule(tower).named_modules():
        if name.rpartition(".")[2] in PATCHES:
            inner = name if hasattr(module, "weight") else f"{name}.projection"
            path = f"{tower}.{inner}" if tower else inner
            if path in dict(model.named_modules()):
                return path
    return ""
