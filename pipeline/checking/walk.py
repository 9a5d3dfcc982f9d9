"""Every input of a modality, looked at in threads: libjpeg, libsndfile and SHA-256 let each other run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from tqdm import tqdm

from contract.manifest import Manifest
from pipeline.checking import contents
from pipeline.checking.contents import CONTENTS, Known
from pipeline.checking.inputs import Seen, look

BLOCK = 1024  # items that are written at a time
BLOCKS_AHEAD = 2


class Place(NamedTuple):
    """An input as it lies there now; -1 where there is no file."""

    file: str
    part: str
    size_bytes: int
    mtime_ns: int


def walk(manifest: Manifest, modality: str, folder: Path, num_workers: int) -> pa.Table:
    """A row of `CONTENTS` for each item; inputs that `folder` knows, and that are as they were, aren't read."""
    path = folder / f"contents.{modality}.arrows"
    contents.keep_unfinished(path)
    known = Known(contents.read(path))
    bar = tqdm(
        total=manifest.num_rows(modality), desc=f"check {modality}", unit="item", unit_scale=True, mininterval=0.5
    )
    with bar, contents.writing(path) as append, ThreadPoolExecutor(num_workers, "check") as threads:
        try:
            for batch in _batches(manifest, modality, known, threads):
                append(batch)
                bar.update(batch.num_rows)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return contents.read(path)


def _batches(
    manifest: Manifest, modality: str, known: Known, threads: ThreadPoolExecutor
) -> Iterator[pa.RecordBatch]:
    root, items = Path(manifest.media_root), manifest.items[modality].select(["file", "part"])
    ahead: deque[tuple[list[Place], list[Seen | Future[Seen]]]] = deque()
    for start in range(0, items.num_rows, BLOCK):
        rows = items.slice(start, BLOCK).to_pydict()
        places = _places(root, rows["file"], rows["part"])
        asked: dict[Place, Future[Seen]] = {}
        seen: list[Seen | Future[Seen]] = []
        for place, one in zip(places, known.find(_columns(places)), strict=True):
            if one is None and place not in asked:
                asked[place] = threads.submit(look, root, modality, place.file, place.part)
            seen.append(one or asked[place])
        ahead.append((places, seen))
        if len(ahead) > BLOCKS_AHEAD:
            yield _batch(*ahead.popleft())
    while ahead:
        yield _batch(*ahead.popleft())


def _places(root: Path, files: list[str], parts: list[str]) -> list[Place]:
    there = {file: _size_and_time(root / file) for file in set(files)}
    return [Place(file, part, *there[file]) for file, part in zip(files, parts, strict=True)]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError for a NUL in the name
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _batch(places: list[Place], seen: list[Seen | Future[Seen]]) -> pa.RecordBatch:
    results = [one.result() if isinstance(one, Future) else one for one in seen]
    columns = [*zip(*places, strict=True), *zip(*results, strict=True)]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, CONTENTS, strict=True)]
    return pa.record_batch(arrays, schema=CONTENTS)


def _columns(places: list[Place]) -> pa.RecordBatch:
    columns = zip(zip(*places, strict=True), CONTENTS, strict=False)
    return pa.record_batch({field.name: pa.array(values, field.type) for values, field in columns})
