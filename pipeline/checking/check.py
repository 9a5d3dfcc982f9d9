"""One dataset, built and checked: the report, and what in it is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import DataError
from contract.manifest import Manifest
from contract.store import writing
from pipeline.checking import figures, problems, sames
from pipeline.checking.figures import PLURALS
from pipeline.checking.problems import Problems
from pipeline.checking.walk import walk
from pipeline.datasets import Dataset

PROBLEMS = "problems.jsonl"
# How the report says each problem.
SAID = {
    "missing": "missing {what} ({count:,} of {num_rows:,})",
    "unreadable": "unreadable {what} ({count:,} of {num_rows:,})",
    "empty": "empty {what} ({count:,} of {num_rows:,})",
    "repeated": "same {what} within a split ({count:,})",
    "leaked": "same {what} in two splits ({count:,})",
}

Say = Callable[[str], None]


def check(dataset: Dataset, data_root: Path, folder: Path, num_workers: int, say: Say) -> None:
    """Report on the dataset at `data_root`; `DataError`, in the end, if none of it is readable or splits overlap.

    `folder` keeps what was found, so that the next check reads only what has changed.
    """

    def note(line: str) -> None:
        say(f"note: {line}")

    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder} is a file, not a folder")
    manifest = dataset.build(data_root, note)
    say(f"{dataset.name}: {dataset.title}, in {data_root}")
    for line in figures.lines(manifest):
        say(line)
    for line in (*dataset.count_differences(manifest), *dataset.hash_differences(data_root)):
        note(line)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), problems.writing(folder / PROBLEMS) as found:
        for modality in manifest.modalities:
            _examine(manifest, modality, folder, num_workers, found)
    for line in _report(manifest, found):
        say(line)
    if found.counts:
        say(f"each of them is a line of {folder / PROBLEMS}")
    else:
        (folder / PROBLEMS).unlink()
    errors = list(_errors(manifest, found))
    if errors:
        raise DataError(f"dataset {dataset.name}: {'; '.join(errors)}; see {folder / PROBLEMS}")


def _examine(manifest: Manifest, modality: str, folder: Path, num_workers: int, found: Problems) -> None:
    if modality == "text":
        _find_empty(manifest, found)
        return
    contents = walk(manifest, modality, folder, num_workers)
    _find_unreadable(manifest, modality, contents, found)
    for group in sames.groups(manifest, modality, contents):
        firsts: dict[str, dict[str, Any]] = {}
        for item in group:
            firsts.setdefault(item["split"], item)
        kind, shown = ("leaked", firsts.values()) if len(firsts) > 1 else ("repeated", group[:2])
        found.add(modality, kind, " = ".join(f"{item['split']} {item['id']}" for item in shown), items=group)


def _find_empty(manifest: Manifest, found: Problems) -> None:
    for batch in manifest.items["text"].select(["id", "text"]).to_batches():
        is_empty = pc.equal(pc.utf8_trim_whitespace(batch.column("text")), "")
        for id_ in batch.column("id").filter(is_empty).to_pylist():
            found.add("text", "empty", id_, id=id_)


def _find_unreadable(manifest: Manifest, modality: str, contents: pa.Table, found: Problems) -> None:
    items, start = manifest.items[modality].select(["id", "file", "part", "split", "start_ms"]), 0
    for batch in contents.select(["size_bytes", "duration_ms", "reason"]).to_batches():
        ours, begins = items.slice(start, batch.num_rows), items.column("start_ms").slice(start, batch.num_rows)
        start += batch.num_rows
        has_reason = pc.not_equal(batch.column("reason"), "")
        is_over = pc.and_(pc.greater(begins, 0), pc.greater_equal(begins, batch.column("duration_ms")))
        rows = pc.indices_nonzero(pc.or_(is_over, has_reason))
        for item, content in zip(ours.take(rows).to_pylist(), batch.take(rows).to_pylist(), strict=True):
            begins_ms = item.pop("start_ms")
            reason = (
                content["reason"] or f"it begins at {begins_ms} ms, and the sound ends at {content['duration_ms']}"
            )
            if content["size_bytes"] < 0:
                found.add(modality, "missing", item["file"], **item, reason=reason)
            else:
                found.add(modality, "unreadable", f"{item['id']} ({reason})", **item, reason=reason)


def _report(manifest: Manifest, found: Problems) -> Iterator[str]:
    for (modality, kind), shown in found.shown.items():
        count = found.counts[modality, kind]
        yield f"{_said(manifest, modality, kind, count)}: {'; '.join(shown)}{'; ...' if count > len(shown) else ''}"
    for modality in manifest.modalities:
        num_bad = _num_bad(found, modality)
        if modality != "text":
            yield f"{manifest.num_rows(modality) - num_bad:,} {PLURALS[modality]} can be decoded"
    if "text" in manifest.items and (num_shared := sames.shared_captions(manifest)):
        yield f"note: {num_shared:,} captions of val and test stand word for word in another split"


def _errors(manifest: Manifest, found: Problems) -> Iterator[str]:
    for modality in manifest.modalities:
        what, num_rows = PLURALS[modality], manifest.num_rows(modality)
        if num_rows and modality != "text" and _num_bad(found, modality) == num_rows:
            yield f"none of its {num_rows:,} {what} can be decoded"
        if num_leaked := found.counts[modality, "leaked"]:
            yield _said(manifest, modality, "leaked", num_leaked)


def _num_bad(found: Problems, modality: str) -> int:
    return found.counts[modality, "missing"] + found.counts[modality, "unreadable"]


def _said(manifest: Manifest, modality: str, kind: str, count: int) -> str:
    return SAID[kind].format(what=PLURALS[modality], count=count, num_rows=manifest.num_rows(modality))
