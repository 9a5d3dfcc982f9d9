"""A user's own frozen model: a function that makes a torch module, named by the configuration.

    factory: package.module:function     called with `args`; found as Python finds it, the working folder first

It returns a `torch.nn.Module`, called on a batch, that gives a mapping of field names to tensors [n, ...], the same
shapes for every batch:

    image   float32 [n, 3, h, w], (pixels x rescale - mean) / std
    audio   float32 [n, samples] padded with zeros, and int64 [n], how many samples are the sound
    text    a list of n captions

`logits` [n, C] are a classifier's; `length` [n] says how many tokens of a sequence are real. What a reader needs
beside the values, such as the grid of patches, it may say as the attribute `about`: {field: {name: value}}.
`checkpoint` is a state dict, as .safetensors or what torch.save wrote; without one, the factory loads its weights.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from contract import fingerprint
from contract.encodings import Float16, Int32, LogitsEncoding, TopK
from contract.errors import ConfigError
from contract.schema import Field
from contract.views import AudioView, ImageView, TextView
from encoders import weights
from encoders.image_processor import Preprocessing, Processing, settled
from encoders.outputs import Precision, autocast, take, to_numpy

if TYPE_CHECKING:
    import torch

FACTORY = re.compile(r"[\w.]+:\w+")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Of weights that are drawn to be told from loaded ones.
SEEDS = (7_919_001, 7_919_002)


@dataclass(frozen=True, kw_only=True)
class _Custom:
    """What the three modalities share; `encodings` says how a field is stored, float16 or int32 unless it does."""

    kind: Literal["custom"] = "custom"
    factory: str
    args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    take: tuple[str, ...] | None = None
    precision: Precision = "float32"
    batch_size: PositiveInt = 64
    encodings: dict[str, LogitsEncoding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what names no function."""
        if not FACTORY.fullmatch(self.factory):
            raise ConfigError(f"factory: {self.factory!r} is not package.module:function")

    def fields(self) -> tuple[Field, ...]:
        """Everything that the module gives, or what `take` names of it."""
        fields = self._described.fields
        return take(fields, self.take, [field.name for field in fields])

    def recipe(self) -> Mapping[str, Any]:
        """The factory, its code and its arguments, the weights, the preprocessing, the precision."""
        return {
            "kind": self.kind,
            "factory": self.factory,
            "code": self._described.code,
            "args": self.args,
            "weights": self._weights_fingerprint(),
            "precision": self.precision,
            **self._preprocessing_recipe(),
        }

    def notes(self) -> tuple[str, ...]:
        """There is no preprocessing but what the configuration says."""
        return ()

    def _preprocessing_recipe(self) -> dict[str, Any]:
        raise NotImplementedError

    def _example(self) -> tuple[Any, ...]:
        """The smallest batch that tells how many rows there are."""
        raise NotImplementedError

    @cached_property
    def _described(self) -> _Described:
        """What the module gives, told without weights if it runs without any."""
        import torch

        self._function()  # here, since what a file keeps for good must not be made on the meta device
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # weights of the factory's own are loaded into nothing
                return self._describe()
        except Exception:  # the module may need values; if that is not what is wrong, it goes wrong again
            return self._describe()

    def _describe(self) -> _Described:
        import torch

        module = self._make()
        batch = self._example()
        try:
            with torch.inference_mode():
                made = module(*batch)
        except Exception as error:  # it is the user's code
            raise ConfigError(f"factory: the module of {self.factory} fails: {_told(error)}") from error
        outputs = _checked(made, len(batch[0]), self.factory)
        about = _about(module, outputs, self.factory)
        unknown = [name for name in self.encodings if name not in outputs]
        if unknown:
            raise ConfigError(
                f"encodings.{unknown[0]}: {self.factory} gives no such field, only {', '.join(outputs)}"
            )
        fields = tuple(self._field(name, value, about.get(name, {})) for name, value in outputs.items())
        return _Described(fields=fields, code=self._code(module))

    def _code(self, module: torch.nn.Module) -> dict[str, str]:
        """By Python module, the hash of its file: the factory's, and those of its parts that are not installed."""
        own = {self.factory.partition(":")[0], getattr(self._function(), "__module__", "builtins")}
        hashes = {}
        for name in sorted(own | {type(part).__module__ for part in module.modules()}):
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and (name in own or not file.startswith(_installed())):
                hashes[name] = fingerprint.of_file(Path(file))
        return hashes

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.factory.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            imported = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # it is the user's code, and may be a script
            raise ConfigError(
                f"factory: {module} can't be imported ({Path.cwd()} comes first): {_told(error)}"
            ) from error
        function = getattr(imported, name, None)
        if not callable(function):
            raise ConfigError(f"factory: {module} ({imported.__file__}) has no function {name!r}")
        found: Callable[..., Any] = function
        return found

    def _make(self) -> torch.nn.Module:
        import torch

        function = self._function()
        try:
            made = function(**self.args)
        except Exception as error:  # it is the user's code
            raise ConfigError(f"factory: {self.factory} with args {self.args} fails: {_told(error)}") from error
        if not isinstance(made, torch.nn.Module):
            raise ConfigError(f"factory: {self.factory} gives a {type(made).__name__}, not a torch.nn.Module")
        if torch.get_default_device().type != "meta" and any(value.is_meta for value in made.parameters()):
            raise ConfigError(f"factory: {self.factory} keeps its module; make a new one at each call")
        # Half weights are computed with in float32.
        return made.float().eval().requires_grad_(False)

    def _loaded(self, device: str) -> torch.nn.Module:
        module = self._make()
        if self.checkpoint is not None:
            weights.load_state(module, weights.find_file(self.checkpoint))
        return module.to(device)

    def _weights_fingerprint(self) -> str:
        if self.checkpoint is not None:
            return fingerprint.of_file(weights.find_file(self.checkpoint))
        one, other = (self._drawn(seed) for seed in SEEDS)
        if one != other:
            raise ConfigError(
                f"factory: {self.factory} draws weights at random; give a `checkpoint`, or let it load them"
            )
        return one

    def _drawn(self, seed: int) -> str:
        """Fingerprint of the weights that the factory gives its module, if it draws any from this seed."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = self._make().state_dict()
        return fingerprint.of_stream(
            part for name, value in state.items() for part in (name.encode(), _bytes(value))
        )

    def _field(self, name: str, value: torch.Tensor, about: Mapping[str, Any]) -> Field:
        encoding = self.encodings.get(name, Float16() if value.is_floating_point() else Int32())
        if isinstance(encoding, TopK) and name != "logits":
            raise ConfigError(f"encodings.{name}: topk is of a distribution, which only logits are")
        if isinstance(encoding, Int32) is value.is_floating_point():
            raise ConfigError(f"encodings.{name}: {self.factory} gives whole numbers, which are stored as int32")
        known = {"temperature": 1.0} if name == "logits" and "multi_label" not in about else {}
        return Field(name=name, shape=tuple(value.shape[1:]), encoding=encoding, about={**known, **about})


@dataclass(frozen=True, kw_only=True)
class CustomImage(_Custom):
    """A model of images; `preprocessing` must say input_size, interpolation, mean and std."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def view(self) -> ImageView:
        """What `preprocessing` says."""
        return self._processing.view

    def build(self, device: str) -> _Model:
        """The module with its weights, on `device`."""
        return _Model(self, lambda views: (self._processing.normalise(views, device),), device)

    @cached_property
    def _processing(self) -> Processing:
        return settled(self.preprocessing, Preprocessing(), f"custom encoder {self.factory} has no preprocessing")

    def _preprocessing_recipe(self) -> dict[str, Any]:
        return self._processing.recipe()

    def _example(self) -> tuple[Any, ...]:
        import torch

        view = self.view()
        return (torch.zeros(2, 3, view.height, view.width),)


@dataclass(frozen=True, kw_only=True)
class CustomAudio(_Custom):
    """A model of the first `duration_s` seconds of a sound at `sample_rate_hz`."""

    sample_rate_hz: PositiveInt = 16000
    duration_s: PositiveFloat = 10.0

    def view(self) -> AudioView:
        """The start of the sound, mono."""
        return AudioView(sample_rate_hz=self.sample_rate_hz, duration_s=self.duration_s)

    def build(self, device: str) -> _Model:
        """The module with its weights, on `device`."""
        return _Model(self, lambda views: _padded(views, self.view().num_samples, device), device)

    def _preprocessing_recipe(self) -> dict[str, Any]:
        return {"view": asdict(self.view())}

    def _example(self) -> tuple[Any, ...]:
        import torch

        num_samples = self.view().num_samples
        return torch.zeros(2, num_samples), torch.full((2,), num_samples)


@dataclass(frozen=True, kw_only=True)
class CustomText(_Custom):
    """A model of captions, which it splits into tokens itself."""

    def view(self) -> TextView:
        """The caption."""
        return TextView()

    def build(self, device: str) -> _Model:
        """The module with its weights, on `device`."""
        return _Model(self, lambda views: (list(views),), device)

    def _preprocessing_recipe(self) -> dict[str, Any]:
        return {}

    def _example(self) -> tuple[Any, ...]:
        return (["a", "two words"],)


@dataclass(frozen=True, kw_only=True)
class _Described:
    """A module before any weights: its fields, and by Python module the hash of the code that it is made of."""

    fields: tuple[Field, ...]
    code: dict[str, str]


class _Model:
    """The built module; `prepare` makes a batch of views."""

    def __init__(self, config: _Custom, prepare: Callable[[Sequence[Any]], tuple[Any, ...]], device: str) -> None:
        self._config, self._prepare = config, prepare
        self._shapes = {field.name: field.shape for field in config.fields()}
        self._module = config._loaded(device)
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        """n views -> {field: float32 or whole numbers [n, ...]}."""
        import torch

        factory = self._config.factory
        with torch.inference_mode(), self._autocast:
            outputs = _checked(self._module(*self._prepare(views)), len(views), factory)
        for name, shape in self._shapes.items():
            found = tuple(outputs[name].shape[1:]) if name in outputs else None
            if found != shape:
                raise ConfigError(
                    f"factory: {factory}: {name} is {found} for these {len(views)} inputs, and {shape} for others; "
                    "give every batch the same shape, such as the longest"
                )
        return to_numpy(outputs, list(self._shapes))

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}


def _checked(made: Any, num_inputs: int, factory: str) -> dict[str, torch.Tensor]:
    """What a module gave, as fields; `ConfigError` for what is none."""
    import torch

    if not isinstance(made, Mapping) or not made:
        raise ConfigError(
            f"factory: the module of {factory} gives a {type(made).__name__}, not a mapping of names to tensors"
        )
    for name, value in made.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(f"factory: {factory}: {name!r} is no name of a field: letters, digits, - and _")
        if not isinstance(value, torch.Tensor) or value.is_complex():
            what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConfigError(f"factory: {factory}: {name} is a {what}, not a tensor of real numbers")
        if value.shape[:1] != (num_inputs,):
            raise ConfigError(
                f"factory: {factory}: {name} is {tuple(value.shape)} for {num_inputs} inputs: no row for each"
            )
    return dict(made)


def _about(module: torch.nn.Module, names: Mapping[str, Any], factory: str) -> dict[str, dict[str, Any]]:
    """What the module says of its fields, as JSON has it."""
    said = getattr(module, "about", {})
    try:
        about: dict[str, dict[str, Any]] = json.loads(json.dumps(said))
        strange = [name for name, value in about.items() if name not in names or not isinstance(value, dict)]
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"factory: {factory}: `about` is not {{field: {{name: value}}}}: {error}") from error
    if strange:
        raise ConfigError(
            f"factory: {factory}: about[{strange[0]!r}] is not {{name: value}} of one of {', '.join(names)}"
        )
    return about


def _told(error: BaseException) -> str:
    """An exception of the user's code in one line, and where in that code it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", __file__, *_installed()))]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"


def _installed() -> tuple[str, ...]:
    """The folders of what is installed."""
    return tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))


def _padded(views: Sequence[npt.NDArray[np.float32]], num_samples: int, device: str) -> tuple[Any, Any]:
    """n sounds -> float32 [n, num_samples], and how many samples of each are real, int64 [n]."""
    import torch

    sounds = np.zeros((len(views), num_samples), np.float32)
    for row, view in enumerate(views):
        sounds[row, : len(view)] = view
    return torch.from_numpy(sounds).to(device), torch.tensor([len(view) for view in views], device=device)


def _bytes(value: Any) -> bytes:
    """An entry of a state dict, of which a few are no tensors."""
    import torch

    if not isinstance(value, torch.Tensor):
        return repr(value).encode()
    return value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
