"""Image models of timm, classifiers and feature extractors: any field of `image_model` from one forward pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import PositiveInt

from contract import fingerprint
from contract.errors import ConfigError, DataError
from contract.schema import Field
from contract.views import ImageView
from contract.views.image import CropMode, Interpolation
from encoders import image_processor, weights
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

FOLDERS, HUB = "local-dir:", "hf-hub:"
OTHERWISE = "name another as `tokens`, or leave patch_embeddings out of `take`"
# Of weights that are drawn to be told from loaded ones.
SEEDS = (7_919_001, 7_919_002)
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class TimmImage:
    """Any image model of timm, with weights from timm's hub, a local file or a folder.

    `model` is timm's name, `local-dir:PATH` or `local-dir:shipped:PATH` for a folder as timm saves them (its
    config.json says architecture, arguments and preprocessing), or `hf-hub:OWNER/NAME` for such a repository.
    `model_args` go to `timm.create_model`; `checkpoint` is a file of weights, converted as timm converts those of
    the model's authors (None: timm's own from the hub or its local cache, or the folder's). `tokens` names the
    module whose output becomes `patch_embeddings`: by default the linear patch embedding of a ViT, and the last
    stage's feature map of anything else. `take` names the fields that are stored (None: patch_embeddings,
    features and logits, those that there are). Preprocessing is the model's own; `preprocessing` overrides parts.
    """

    kind: Literal["timm"] = "timm"
    model: str
    checkpoint: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    tokens: str | None = None
    take: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    precision: Precision = "float32"
    batch_size: PositiveInt = 64
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> ImageView:
        """The evaluation crop of the model's data configuration."""
        return self._processing.view

    def fields(self) -> tuple[Field, ...]:
        """Those of `take`: see `image_model`. `features` are what timm's `forward_head(pre_logits=True)` gives."""
        import torch

        with torch.device("meta"):
            outputs = self._outputs(self._create())
            names = [name for name in NAMES if name != "patch_embeddings" or self._wants_tokens]
            fields = described(outputs, self._processing, self.encodings, names, f"timm model {self.model}")
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Model, arguments, hash of the weights file, preprocessing, precision."""
        return {
            "kind": self.kind,
            "model": self._source.architecture,
            "model_args": self._source.model_args,
            "weights": fingerprint.of_file(self._weights()),
            "tokens": self.tokens,
            **self._processing.recipe(),
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """One line for each override of the model's own preprocessing."""
        return self._processing.notes

    def build(self, device: str) -> ImageModel:
        """The model with its weights, on `device`."""
        return ImageModel(
            self._outputs(self._load(self._weights()).to(device)),
            names=[field.name for field in self.fields()],
            processing=self._processing,
            precision=self.precision,
            device=device,
            stores_pixels=self.encodings.stores_pixels,
        )

    @property
    def _wants_tokens(self) -> bool:
        return self.take is None or "patch_embeddings" in self.take

    @cached_property
    def _processing(self) -> Processing:
        import timm.data

        source = f"timm model {self.model}"
        data = timm.data.resolve_data_config({}, pretrained_cfg=self._source.pretrained)
        size = self._source.model_args.get("img_size")
        height, width = data["input_size"][1:] if size is None else (size, size) if isinstance(size, int) else size
        own = Preprocessing(
            input_size=(3, height, width),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            interpolation=_known(data["interpolation"], get_args(Interpolation)),
            crop_pct=data["crop_pct"],
            crop_mode=_known(data["crop_mode"], get_args(CropMode)),
            rescale=1 / 255,
        )
        for key in ("interpolation", "crop_mode"):
            if getattr(own, key) is None and getattr(self.preprocessing, key) is None:
                raise ConfigError(f"{source}: no view has its {key} {data[key]!r}; override preprocessing.{key}")
        return image_processor.settled(own, self.preprocessing, source)

    @cached_property
    def _source(self) -> _Source:
        import timm

        if self.model.startswith((FOLDERS, HUB)):
            return _read_folder(self._folder, self.model_args)
        if not timm.is_model(self.model):
            close = timm.list_models(f"*{self.model.partition('.')[0]}*")[:5]
            raise ConfigError(f"timm has no model {self.model!r}{'; it has ' + ', '.join(close) if close else ''}")
        # A tag after the model's name that timm does not know must not fall back to another checkpoint.
        base, _, tag = self.model.partition(".")
        if tag and self.model not in timm.list_models(f"{base}*", pretrained=True):
            raise ConfigError(f"timm has no pretrained weights {self.model!r}")
        found = timm.get_pretrained_cfg(self.model)
        pretrained = dict(found.to_dict()) if found is not None else {}
        return _Source(architecture=self.model, pretrained=pretrained, model_args=self.model_args)

    @cached_property
    def _folder(self) -> Path:
        if self.model.startswith(HUB):
            return weights.find_folder(self.model.removeprefix(HUB))
        return weights.local_folder(self.model.removeprefix(FOLDERS))

    def _create(self, **loading: Any) -> torch.nn.Module:
        import timm

        source = self._source
        known: dict[str, Any] = (
            {"pretrained_cfg": source.pretrained} if self.model.startswith((FOLDERS, HUB)) else {}
        )
        try:
            model: torch.nn.Module = timm.create_model(
                source.architecture, pretrained=bool(loading), **known, **loading, **source.model_args
            )
        except (TypeError, RuntimeError, ValueError) as error:
            if loading:
                raise
            raise ConfigError(f"timm model {self.model} with model_args {source.model_args}: {error}") from error
        if loading:  # timm keeps the whole state
            kept: Any = model.pretrained_cfg
            del kept["state_dict"]
        return model.eval().requires_grad_(False)

    def _drawn(self, seed: int, **loading: Any) -> torch.nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._create(**loading)

    def _weights(self) -> Path:
        if self.checkpoint is not None:
            return weights.find_file(self.checkpoint)
        if self.model.startswith((FOLDERS, HUB)):
            found = [self._folder / name for name in WEIGHTS_FILES if (self._folder / name).is_file()]
            if not found:
                raise DataError(f"{self._folder}: no weights there, {' or '.join(WEIGHTS_FILES)}")
            return found[0]
        repository = self._source.pretrained.get("hf_hub_id")
        if not repository:
            raise ConfigError(f"timm model {self.model} has no weights on the hub; give `checkpoint`")
        return weights.of_hub_file(repository, self._source.pretrained.get("hf_hub_filename") or WEIGHTS_FILES[0])

    def _load(self, path: Path) -> torch.nn.Module:
        """The model with the weights of a file, through timm's own conversion of them."""
        import timm.models
        import torch

        with torch.device("meta"):
            empty = self._create()
        try:
            state = timm.models.load_state_dict(str(path), weights_only=True)
            loading = {"pretrained_cfg_overlay": self._overlay(empty, state)}
            if set(empty.state_dict()) <= set(state):
                return self._create(**loading)
            # Its names are converted, or some are missing: for a few models timm would draw those at random.
            drawn, other = (self._drawn(seed).state_dict() for seed in SEEDS)
            random = [name for name in drawn if not drawn[name].equal(other[name])]
            model = self._drawn(SEEDS[0], **loading)
        except Exception as error:  # safetensors, torch and pickle each raise their own for a file that is none
            raise DataError(f"checkpoint {path} can't be loaded into the model: {weights.reason(error)}") from error
        loaded = model.state_dict()
        missing = [name for name in random if loaded[name].equal(drawn[name])]
        if missing:
            raise DataError(f"checkpoint {path} lacks {len(missing)} of the model's arrays, such as {missing[0]!r}")
        return model

    def _overlay(self, model: torch.nn.Module, state: dict[str, Any]) -> dict[str, Any]:
        """What makes timm load this state, whole, whatever its own checkpoint has for classes."""
        pretrained, num_classes = self._source.pretrained, getattr(model, "num_classes", 0)
        if num_classes == 0:
            named = pretrained.get("classifier") or ()
            for classifier in (named,) if isinstance(named, str) else named:
                for part in ("weight", "bias"):
                    state.pop(f"{classifier}.{part}", None)
        overlay: dict[str, Any] = {"state_dict": state, "source": "", "file": None}
        if num_classes != pretrained.get("num_classes"):
            overlay |= {"num_classes": num_classes, "label_offset": 0}
        return overlay

    def _outputs(self, model: torch.nn.Module) -> _Outputs:
        return _Outputs(model, self._tokens_module(model) if self._wants_tokens else None)

    def _tokens_module(self, model: torch.nn.Module) -> str:
        modules = dict(model.named_modules())
        if self.tokens is not None:
            if self.tokens not in modules:
                raise ConfigError(f"tokens: timm model {self.model} has no module {self.tokens!r}")
            return self.tokens
        last = _stages(model)[-1]
        # Only in a model of one resolution (ViT) is the patch embedding what all its blocks work on.
        is_plain = "patch_embed" in modules and getattr(model, "embed_dim", None) == last.get("num_chs")
        module = "patch_embed" if is_plain else str(last.get("module"))
        # Of a few (MViT, Twins) timm does not say which module the last stage is.
        return module if module in modules else ""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model before any weights: timm's configuration of it, and the arguments that it is created with."""

    architecture: str
    pretrained: dict[str, Any]
    model_args: dict[str, Any]


class _Outputs:
    """The outputs of one forward pass: a hook catches what the module `tokens` gives.

    `tokens` "" is what `forward_features` gives; None leaves patch embeddings out.
    """

    def __init__(self, model: torch.nn.Module, tokens: str | None) -> None:
        self._model: Any = model
        self._tokens = tokens
        self._name = f"timm's {type(model).__name__}"
        self._caught = Caught(model, {"tokens": tokens} if tokens else {})
        self.about: dict[str, dict[str, Any]] = {}

    @property
    def projection(self) -> torch.nn.Module | None:
        """The convolution of a ViT's patch embedding, if nothing is done to what it gives."""
        import torch

        embedding = getattr(self._model, "patch_embed", None)
        is_plain = self._tokens == "patch_embed" and isinstance(getattr(embedding, "norm", None), torch.nn.Identity)
        return getattr(embedding, "proj", None) if is_plain else None

    def __call__(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Float [n, 3, h, w] -> of the named fields those that the model has."""
        model, size = self._model, images.shape[2:]
        self._caught.clear()
        final = model.forward_features(images)
        parts = self._parts(final, size)
        made = {name: value for name, value in parts.items() if name in names}
        if "patch_embeddings" in names:
            made["patch_embeddings"] = self._patch_embeddings(parts, images)
        if "features" in names:
            made["features"] = model.forward_head(final, pre_logits=True)
        if "logits" in names and getattr(model, "num_classes", 0) > 0:
            made["logits"] = model.forward_head(final)
            # Softmax of the stored values themselves is the classifier's distribution.
            self.about["logits"] = {"temperature": 1.0}
        return made

    def _patch_embeddings(self, parts: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        if not self._tokens and "patch_features" in parts:
            self.about["patch_embeddings"] = {"module": "forward_features", **self.about["patch_features"]}
            return parts["patch_features"]
        try:
            output = self._caught["tokens"]
        except KeyError as error:
            raise ConfigError(
                f"module {self._tokens!r} of {self._name} is not passed through; {OTHERWISE}"
            ) from error
        output = output[0] if isinstance(output, tuple) else output  # XCiT gives its patches' grid beside them
        found = self._as_tokens(output, images.shape[2:])
        if found is None or len(output) != len(images):
            shape = list(getattr(output, "shape", ()))
            raise ConfigError(
                f"module {self._tokens!r} of {self._name} gives {shape}, which are no patches; {OTHERWISE}"
            )
        self.about["patch_embeddings"] = {"module": self._tokens, **self._geometry(found[1], images.shape[2:])}
        return found[0]

    def _parts(self, final: Any, size: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """`patch_features`, `cls` and `registers` of what `forward_features` gives; {} if it is no patches."""
        is_sequence = len(getattr(final, "shape", ())) == 3
        parts = split(final, self._num_prefix, self._num_registers, self._has_cls) if is_sequence else {}
        found = self._as_tokens(parts.pop("patch_features", final), size)
        if found is None or len(found[1]) != 2:
            return parts
        self.about["patch_features"] = self._geometry(found[1], size)
        return {"patch_features": found[0], **parts}

    def _as_tokens(self, output: Any, size: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...]] | None:
        """Tokens [n, T, D] and their grid, whichever of [n, T, D], [n, D, h, w] and [n, h, w, D] the output is."""
        model, shape = self._model, tuple(getattr(output, "shape", ()))
        if len(shape) == 3 and shape[1] > 0:
            patch_grid, prefix = _pair(getattr(model, "patch_embed", None), "grid_size"), self._num_prefix
            for first in (prefix, 0):
                if patch_grid and shape[1] - first == math.prod(patch_grid):
                    return output[:, first:], patch_grid
            grid, without = (grid_of(max(1, shape[1] - first), *size) for first in (0, prefix))
            return (output[:, prefix:], without) if len(grid) < len(without) else (output, grid)
        widths = {stage.get("num_chs") for stage in _stages(model)}
        of_model = (getattr(model, name, None) for name in ("embed_dim", "num_features"))
        widths |= {width for width in of_model if isinstance(width, int)}
        if len(shape) != 4 or not widths & {shape[1], shape[3]}:
            return None
        is_last = shape[1] not in widths or (shape[3] in widths and getattr(model, "output_fmt", "") == "NHWC")
        maps = output.permute(0, 3, 1, 2) if is_last else output
        return as_tokens(maps), tuple(maps.shape[2:])

    def _geometry(self, grid: tuple[int, ...], size: tuple[int, ...]) -> dict[str, Any]:
        reduction = _stages(self._model)[-1].get("reduction")
        known = [_pair(getattr(self._model, "patch_embed", None), "patch_size")]
        known += [(reduction, reduction)] if isinstance(reduction, int) else []
        prefix = {
            "num_prefix_tokens": self._num_prefix,
            "num_cls_tokens": int(self._has_cls),
            "num_register_tokens": self._num_registers,
        }
        return geometry(grid, size, [patch for patch in known if patch]) | prefix

    @property
    def _num_prefix(self) -> int:
        # PiT and VOLO have a CLS token and no count of them.
        num_cls = int(getattr(self._model, "cls_token", None) is not None)
        return int(getattr(self._model, "num_prefix_tokens", num_cls))

    @property
    def _num_registers(self) -> int:
        # DINOv3 has the tokens and no count of them.
        tokens = getattr(self._model, "reg_token", None)
        counted = getattr(self._model, "num_reg_tokens", None)
        return int(counted if counted is not None else 0 if tokens is None else tokens.shape[1])

    @property
    def _has_cls(self) -> bool:
        return self._num_prefix > self._num_registers


def _read_folder(folder: Path, model_args: Mapping[str, Any]) -> _Source:
    """What a folder in timm's own format says of its model; `model_args` go before its own."""
    from timm.models._hub import load_model_config_from_path

    try:
        pretrained, architecture, own = load_model_config_from_path(folder)
    except Exception as error:  # a file that is missing, is no JSON or lacks a key each raises its own
        raise DataError(
            f"{folder / 'config.json'} is not timm's description of a model: {weights.reason(error)}"
        ) from error
    return _Source(architecture=architecture, pretrained=dict(pretrained), model_args={**own, **model_args})


def _stages(model: torch.nn.Module) -> list[dict[str, Any]]:
    """What timm says of the model's stages, one at least."""
    stages: Any = getattr(model, "feature_info", None)
    return [
        {key: value for key, value in stage.items() if isinstance(value, str | int)} for stage in stages or [{}]
    ]


def _pair(module: Any, name: str) -> tuple[int, ...]:
    value = getattr(module, name, None)
    return tuple(value) if isinstance(value, tuple | list) else ()


def _known(value: str, allowed: tuple[Any, ...]) -> Any:
    return value if value in allowed else None
