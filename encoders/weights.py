"""Where a frozen model's weights lie: a file, a folder, an installed package, or a hub's local cache."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from contract import fingerprint
from contract.config import SHIPPED
from contract.errors import DataError, MissingExtraError

# What decides a transformers model's values: weights, shapes, tokenizer.
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")


def find_file(name: str) -> Path:
    """A weights file: a path, or `shipped:PATH` for one that comes with Precept."""
    shipped = name.removeprefix("shipped:")
    path = SHIPPED / shipped if shipped != name else Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"checkpoint {path}: no such file; give the path of a .safetensors or .pth file")
    return path


def find_folder(name: str) -> Path:
    """A transformers model: a local folder, `package:NAME/FOLDER` of an installed package, or a hub's name."""
    inside = name.removeprefix("package:")
    if inside != name:
        package, _, folder = inside.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(
                f"text encoder {name}: the package {package} is not installed: install it, or Precept with its "
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
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
    return fingerprint.of_tree({file.name: fingerprint.of_file(file) for file in files})


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in MODEL_FILES if pattern != "*.bin"]
    with contextlib.suppress(Exception):  # whatever is wrong with the cache, the hub is asked next
        cached = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        # It may hold the tokenizer alone, from an earlier look at it.
        if (cached / "config.json").exists() and any(cached.glob("*.safetensors")):
            return cached
    _require_hub(name)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # as above
        raise _not_here(name, error) from error


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
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return MissingExtraError(
        f"weights {name} are not on this machine and can't be fetched ({reason}); give a local file as "
        "`checkpoint` or a local folder as `model`, or run once with network access"
    )
