"""One modality's items as a FAISS index in a folder, with a description of what it is an index of.

    INDEX/<dataset>-<split>-<modality>.<index>/
      index.faiss            as FAISS writes it
      description.json       whose vectors, which index, the settings it is searched with, the file's checksum

The folder is made under another name and renamed when it is whole, so that a build that is killed leaves nothing
that counts. One process builds in INDEX at a time; a second one waits, and finds the index there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import fingerprint, records
from contract.errors import RunError
from contract.files import PARTIAL, replace_file
from contract.schema import difference
from eval.holding import alone_in
from eval.indexes import Index
from eval.indexes.building import build
from eval.indexes.knobs import Knob, Settings, knobs
from eval.indexes.library import METRIC, core, is_on_gpu, library, placed, reason
from eval.vectors import Embeddings, Rows, Vectors

FORMAT = 1
FILE = "index.faiss"
DESCRIPTION = "description.json"
# What a build that was killed may have left in its folder.
UNFINISHED = {FILE, DESCRIPTION, f"{DESCRIPTION}{PARTIAL}"}
# Ids that are turned into text at once.
IDS_AT_ONCE = 65_536
# Of a description, what makes two indexes the same.
IDENTITY = ("factory", "metric", "num_vectors", "width", "ids", "embeddings")
# What is always written down of an index beside its description.
ABOUT = {"faiss", "num_training", "build_s", "file"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an index is of; `factory` is FAISS's string for it, `ids` and `embeddings` are fingerprints."""

    factory: str
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
        """The folder's name."""
        language = f"-{self.language}" if self.modality == "text" else ""
        index = re.sub(r"[^a-z0-9_]+", "-", self.factory.lower()).strip("-")
        return f"{self.dataset}-{self.split}-{self.modality}{language}.{index}"


@dataclass(kw_only=True, eq=False)
class Gallery:
    """An index that is built and saved, on `device` "cpu" or "gpu"; `reused` if it was read from its file.

    `about` is what else was written down of it: how long the build took, on how many vectors it was trained, and
    under `tuned` what it was last tuned to.
    """

    index: Any
    knobs: tuple[Knob, ...]
    description: Description
    path: Path
    device: str
    reused: bool
    about: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """Of the index's file."""
        return (self.path / FILE).stat().st_size

    @property
    def bytes_per_vector(self) -> float:
        """Of the file, all in all."""
        return self.size_bytes / self.description.num_vectors

    @property
    def settings(self) -> Settings:
        """What it was tuned to, by the name of the knob."""
        return dict(self.about["tuned"]["settings"])

    def search(self, queries: Embeddings, k: int) -> Rows:
        """The best gallery rows, int64 [q, k], of `queries` float32 [q, d]; -1 where the index finds fewer."""
        return np.asarray(self.index.search(np.ascontiguousarray(queries), k)[1], dtype=np.int64)

    def remember(self, tuned: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Write down what the index was tuned to."""
        self.about["tuned"] = dict(tuned)
        with alone_in(self.path.parent, say):
            _write_description(self.path, self.description, self.about)


def describe(
    index: Index,
    *,
    run: Path,
    dataset: str,
    split: str,
    language: str,
    modality: str,
    ids: npt.NDArray[np.str_],
    vectors: Vectors,
) -> Description:
    """The description of an index over `vectors`, those of the items `ids`, str [n]; reads every vector."""
    return Description(
        factory=index.factory(vectors.num_rows, vectors.width),
        run=str(run.resolve()),
        dataset=dataset,
        split=split,
        language=language,
        modality=modality,
        metric=METRIC,
        num_vectors=vectors.num_rows,
        width=vectors.width,
        ids=fingerprint.of_stream(_as_bytes(ids)),
        embeddings=vectors.fingerprint,
    )


def open_or_build(description: Description, folder: Path, vectors: Vectors, say: Callable[[str], None]) -> Gallery:
    """Read the index from `folder`, or build and save it there; an index of something else is refused."""
    library()
    path = folder / description.name
    with alone_in(folder, say):
        _clear(folder)
        about = _written(path, description, say)
        reused = about is not None
        if about is None:
            about = _build(path, description, vectors, say)
        index = _read_index(path, description, about)
    searched = placed(index, description.name, say)
    return Gallery(
        index=searched,
        knobs=knobs(index),
        description=description,
        path=path,
        device="gpu" if is_on_gpu(searched) else "cpu",
        reused=reused,
        about=about,
    )


def _written(path: Path, wanted: Description, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What is written down of the index wanted; None where it is to be built."""
    if not path.exists():
        return None
    tree = _read_description(path)
    found, about = tree["description"], tree["about"]
    other = difference(found, asdict(wanted))
    if all(found.get(key) == getattr(wanted, key) for key in IDENTITY):
        return dict(about)
    if found.get("run") == wanted.run:
        say(f"note: {path} is of something else of this run ({other}); the index is built again")
        return None
    raise RunError(
        f"{path} is the index of something else: {other}; give --index another folder, or remove this one"
    )


def _build(path: Path, description: Description, vectors: Vectors, say: Callable[[str], None]) -> dict[str, Any]:
    """Build the index, put it in place in one step, and return what was written down of it."""
    partial, old = path.with_name(f"{path.name}{PARTIAL}"), path.with_name(f"{path.name}.old{PARTIAL}")
    built = build(description.factory, vectors, description.name, say)
    try:
        partial.mkdir()
        library().write_index(built.index, str(partial / FILE))
        about = {
            "faiss": library().__version__,
            "num_training": built.num_training,
            "build_s": round(built.build_s, 3),
            "file": {
                "size_bytes": (partial / FILE).stat().st_size,
                "fingerprint": fingerprint.of_file(partial / FILE),
            },
        }
        _write_description(partial, description, about)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except (OSError, RuntimeError) as error:
        raise RunError(f"{path}: the index can't be written: {reason(error)}") from error
    finally:
        for left_behind in (partial, old):
            shutil.rmtree(left_behind, ignore_errors=True)
    return about


def _write_description(path: Path, description: Description, about: Mapping[str, Any]) -> None:
    tree = {"format": FORMAT, "description": asdict(description), "about": dict(about)}
    replace_file(path / DESCRIPTION, records.dump(tree))


def _read_description(path: Path) -> dict[str, Any]:
    at = path / DESCRIPTION
    try:
        content = at.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _damaged(path, f"it has no {DESCRIPTION}") from error
    try:
        version = json.loads(content)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"its {DESCRIPTION} is not the description of an index") from error
    if version != FORMAT:
        raise RunError(
            f"{path} has format {version!r}, this version of Precept reads format {FORMAT}; remove it and it is "
            f"built again"
        )
    try:
        tree = records.load(content)
    except records.DamagedRecordError as error:
        raise _damaged(path, f"its {DESCRIPTION}: {error}") from error
    about = tree.get("about")
    if not (isinstance(tree.get("description"), dict) and isinstance(about, dict) and about.keys() >= ABOUT):
        raise _damaged(path, f"its {DESCRIPTION} is not the description of an index")
    return tree


def _read_index(path: Path, description: Description, about: Mapping[str, Any]) -> Any:
    file, expected = path / FILE, about["file"]
    try:
        size_bytes = file.stat().st_size
    except FileNotFoundError as error:
        raise _damaged(path, f"its {FILE} is gone") from error
    if size_bytes != expected["size_bytes"]:
        raise _damaged(path, f"its {FILE} has {size_bytes:,} bytes, not {expected['size_bytes']:,}")
    if fingerprint.of_file(file) != expected["fingerprint"]:
        raise _damaged(path, f"the checksum of its {FILE} is not the one written down")
    try:
        index = library().read_index(str(file))
    except (RuntimeError, MemoryError) as error:
        raise RunError(
            f"{file}: FAISS {library().__version__} can't read what FAISS {about['faiss']} wrote: {reason(error)}; "
            f"remove {path} and the index is built again"
        ) from error
    if (index.ntotal, index.d) != (description.num_vectors, description.width):
        raise _damaged(path, f"its {FILE} holds {index.ntotal:,} vectors of width {index.d}")
    if {index.metric_type, core(index).metric_type} != {library().METRIC_INNER_PRODUCT}:
        raise _damaged(path, f"its {FILE} does not rank by inner products")
    return index


def _damaged(path: Path, problem: str) -> RunError:
    return RunError(f"{path} is damaged: {problem}; remove it and the index is built again")


def _clear(folder: Path) -> None:
    """Remove what killed builds have left; none goes on while the folder is held."""
    for left_behind in folder.glob(f"*{PARTIAL}"):
        if left_behind.is_dir() and {file.name for file in left_behind.iterdir()} <= UNFINISHED:
            shutil.rmtree(left_behind, ignore_errors=True)


def _as_bytes(ids: npt.NDArray[np.str_]) -> Iterable[bytes]:
    for start in range(0, len(ids), IDS_AT_ONCE):
        yield json.dumps(ids[start : start + IDS_AT_ONCE].tolist()).encode()
