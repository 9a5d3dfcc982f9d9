"""Renders scenes into a data folder, and reads such a folder as a manifest.

    images/<id>.png     64x64 RGB
    sounds/<id>.flac    1.0 s at 16 kHz, mono
    scenes.json         what was rendered, and every scene's label, captions and attributes; written last

A folder without scenes.json is not finished: the file `rendering` says so from the start, and the same command
renders it again from the beginning (a few seconds).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from contract.errors import DataError
from pipeline.building import ManifestBuilder
from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.describe import LANGUAGES, describe
from pipeline.sources.scenes.draw import draw
from pipeline.sources.scenes.sound import SAMPLE_RATE, sound
from pipeline.sources.scenes.world import CLASSES, Sample

VERSION = 1
"""Of the generator: raised whenever the same seed would give other bytes."""


def render(config: Scenes, folder: Path) -> list[dict[str, Any]]:
    """Return the folder's entries, one a scene, after rendering what is not there yet."""
    wanted = {"version": VERSION, **asdict(config)}
    index = folder / "scenes.json"
    if index.exists():
        return _reuse(index, wanted)
    marker = folder / "rendering"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise DataError(f"{folder}: holds other files and no scenes.json; name an empty or a new folder for scenes")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for name in ("images", "sounds"):
        (folder / name).mkdir(exist_ok=True)
    entries = list(_rendered(config.samples(), folder))
    unfinished = folder / "scenes.json.partial"
    unfinished.write_text(json.dumps({**wanted, "scenes": entries}, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(index)
    marker.unlink()
    return entries


def describe_folder(builder: ManifestBuilder, entries: list[dict[str, Any]], folder: Path) -> None:
    """Add what a rendered folder holds: images, their sounds, and captions in every language."""
    ids = [entry["id"] for entry in entries]
    common = {name: [entry[name] for entry in entries] for name in ("id", "split", "label")}
    rows = np.arange(len(entries))
    captions = [
        {"row": row, "id": f"{ids[row]}#{language}-{k}", "text": text, "language": language}
        for row, entry in enumerate(entries)
        for language, texts in entry["captions"].items()
        for k, text in enumerate(texts)
    ]
    images, sounds = [f"images/{id_}.png" for id_ in ids], [f"sounds/{id_}.flac" for id_ in ids]
    text = {name: [caption[name] for caption in captions] for name in ("id", "text", "language")}
    for name in ("split", "label"):
        text[name] = [entries[caption["row"]][name] for caption in captions]
    caption_rows = np.array([caption["row"] for caption in captions], dtype=np.int64)
    builder.num_classes, builder.protocol = len(CLASSES), "scenes"
    builder.items("image", **common, file=images, size_bytes=_sizes(folder, images))
    builder.items("text", **text)
    builder.items("audio", **common, file=sounds, size_bytes=_sizes(folder, sounds))
    builder.pairs("image", "text", np.stack([caption_rows, np.arange(len(captions))], axis=1))
    builder.pairs("image", "audio", np.stack([rows, rows], axis=1))


def _reuse(index: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a finished folder if it holds what is wanted."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        entries: list[dict[str, Any]] = found["scenes"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index}: is damaged ({error}); delete the folder to render it again") from error
    for name, value in wanted.items():
        if found.get(name) != value:
            raise DataError(
                f"{index}: holds scenes with {name} {found.get(name)}, asked for {name} {value}; "
                "name another data root, or delete this folder"
            )
    return entries


def _rendered(samples: list[Sample], folder: Path) -> Iterator[dict[str, Any]]:
    """Render with a thread a core (most of the work is done outside the interpreter), in the samples' order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(partial(_render, folder), samples)
        yield from tqdm(done, desc="render scenes", total=len(samples), unit="scene")


def _render(folder: Path, sample: Sample) -> dict[str, Any]:
    """Write one scene's image and sound; its entry in scenes.json."""
    scene = sample.scene
    Image.fromarray(draw(scene)).save(folder / "images" / f"{sample.id}.png")
    wave = sound(scene, np.random.default_rng([scene.seed, 1]))
    soundfile.write(folder / "sounds" / f"{sample.id}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
    captions = {
        language: describe(scene, language, np.random.default_rng([scene.seed, 2, number]))
        for number, language in enumerate(LANGUAGES)
    }
    return {
        "id": sample.id,
        "split": sample.split,
        "label": scene.label,
        "group": sample.group,
        "varies": sample.varies,
        "captions": captions,
        "attributes": asdict(scene),
    }


def _sizes(folder: Path, files: list[str]) -> list[int]:
    """Return sizes in bytes; a file that was deleted since is an error that names it."""
    try:
        return [(folder / name).stat().st_size for name in files]
    except OSError as error:
        raise DataError(
            f"{folder}: a file of the scenes is gone ({error}); delete the folder to render it again"
        ) from error
