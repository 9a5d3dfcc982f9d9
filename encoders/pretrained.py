"""Models of transformers from a local folder: complete, in float32, frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.errors import ConfigError, DataError
from encoders import weights


def read_config(folder: Path, model: str, model_type: str | None = None) -> Any:
    """The model's configuration, of one type or any; `model` is its name for errors."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a broken file the library raises many kinds
        raise DataError(f"model {model}: {weights.reason(error)}") from error
    if model_type not in (None, config.model_type):
        raise ConfigError(f"model {model}: its config.json is of a {config.model_type!r} model, not {model_type!r}")
    return config


def load(auto_class: str, folder: Path, model: str, *, unused: Sequence[str] = (), **options: Any) -> Any:
    """The model that `auto_class` of transformers makes of the folder, float32, in evaluation mode, on the CPU.

    A checkpoint that lacks a weight is refused: the library would draw it at random. `unused` are patterns of
    the names of weights that are never computed with, which may be missing; `options` go to the configuration.
    """
    import transformers

    try:
        with weights.quiet():
            made, told = getattr(transformers, auto_class).from_pretrained(
                folder, trust_remote_code=False, output_loading_info=True, **options
            )
    except Exception as error:  # as above
        raise DataError(f"model {model}: {weights.reason(error)}") from error
    missing = sorted(key for key in told["missing_keys"] if not any(re.match(pattern, key) for pattern in unused))
    if missing:
        raise DataError(
            f"model {model}: its weights in {folder} lack {len(missing)} of the model's arrays, such as "
            f"{missing[0]!r}; give a checkpoint that is whole"
        )
    # Half weights are computed with in float32.
    return made.float().eval().requires_grad_(False)
