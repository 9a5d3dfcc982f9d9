"""One modality's items as a FAISS index in a file, with a description beside it.

    INDEX/<dataset>-<split>-<modality>.faiss      the index
    INDEX/<dataset>-<split>-<modality>.json       of which run and gallery it is, and the file's checksum

The description is written last: an index without one was never finished, and is built again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import config, fingerprint
from contract.errors import MissingExtraError, RunError
from contract.files import replace_file
from contract.schema import difference
from eval.indexes import Index

Rows = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]

METRIC = "inner product of unit vectors"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an index is of; `ids` and `embeddings` are fingerprints."""

    index: dict[str, Any]
    run: str
    dataset: str
    split: str
    language: str
    modality: str
    metric: str
    num_vectors: int
    width: int
    ids: str
    embeddings: str

    @property
    def name(self) -> str:
        """The files' name, without suffix."""
        language = f"-{self.language}" if self.modality == "text" else ""
        return f"{self.dataset}-{self.split}-{self.modality}{language}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """An index that is built and saved; `reused` if it was read from its file."""

    index: Any
    description: Description
    path: Path
    reused: bool

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size

    def search(self, queries: Embeddings, k: int) -> Rows:
        """The best gallery rows, int64 [q, k], of `queries` float32 [q, d]."""
        return np.asarray(self.index.search(np.ascontiguousarray(queries), k)[1], dtype=np.int64)


def describe(
    index: Index,
    *,
    run: Path,
    dataset: str,
    split: str,
    language: str,
    modality: str,
    ids: Any,
    embeddings: Embeddings,
) -> Description:
    """The description of an index over `embeddings`, float32 [n, d], of the items `ids`, str [n]."""
    return Description(
        index=config.tree(index),
        run=str(run.resolve()),
        dataset=dataset,
        split=split,
        language=language,
        modality=modality,
        metric=METRIC,
        num_vectors=len(embeddings),
        width=embeddings.shape[1],
        ids=fingerprint.of_tree([str(name) for name in ids]),
        embeddings=fingerprint.of_bytes(np.ascontiguousarray(embeddings).data),
    )


def open_or_build(
    index: Index, folder: Path, description: Description, embeddings: Embeddings, say: Callable[[str], None]
) -> Gallery:
    """Read the index from `folder`, or build and save it there; an index of something else is refused."""
    _faiss()
    path = folder / f"{description.name}.faiss"
    found = _read_description(path.with_suffix(".json"))
    if found is not None and _is_of(found, description, path, say):
        return Gallery(index=_placed(_read_index(path, found)), description=description, path=path, reused=True)
    built = index.build(embeddings)
    _save(built, path, description)
    return Gallery(index=_placed(built), description=description, path=path, reused=False)


def _is_of(found: dict[str, Any], wanted: Description, path: Path, say: Callable[[str], None]) -> bool:
    """Whether `found` describes the index wanted; False where the run has new embeddings since."""
    other = {key: value for key, value in found.items() if key != "file"}
    content = ("index", "metric", "num_vectors", "width", "ids", "embeddings")
    if all(other.get(key) == asdict(wanted)[key] for key in content):
        return True
    if other.get("run") == wanted.run:
        say(f"note: {path}: the run has other embeddings since; the index is built again")
        return False
    raise RunError(
        f"{path} is the index of something else: {difference(other, asdict(wanted))}; "
        f"give --index another folder, or remove this one"
    )


def _save(index: Any, path: Path, description: Description) -> None:
    faiss = _faiss()
    if path.parent.exists() and not path.parent.is_dir():
        raise RunError(f"--index {path.parent}: it is a file; an index is kept in a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    description_path = path.with_suffix(".json")
    description_path.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        faiss.write_index(index, str(partial))
        tree = asdict(description) | {
            "file": {"size_bytes": partial.stat().st_size, "fingerprint": fingerprint.of_file(partial)}
        }
        partial.replace(path)
    except RuntimeError as error:
        raise RunError(f"{path}: the index can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    replace_file(description_path, (json.dumps(tree, indent=2) + "\n").encode())


def _read_description(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text())
        tree["file"]["size_bytes"], tree["file"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "it is not the description of an index") from error
    return dict(tree)


def _read_index(path: Path, description: dict[str, Any]) -> Any:
    expected = description["file"]
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _damaged(path, "it is gone, its description is there") from error
    if size_bytes != expected["size_bytes"]:
        raise _damaged(path, f"it has {size_bytes:,} bytes, not {expected['size_bytes']:,}")
    if fingerprint.of_file(path) != expected["fingerprint"]:
        raise _damaged(path, "its checksum is not the one written down")
    return _faiss().read_index(str(path))


def _damaged(path: Path, reason: str) -> RunError:
    beside = path.with_suffix(".json")
    return RunError(f"{path} is damaged: {reason}; remove {beside} and the index is built again")


def _placed(index: Any) -> Any:
    """On the first GPU where FAISS has one."""
    faiss = _faiss()
    if faiss.get_num_gpus() == 0:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(f"--index needs FAISS, which can't be imported: {error}") from error
    return faiss
