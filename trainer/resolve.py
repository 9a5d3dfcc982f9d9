"""From a recipe and the stores at hand to the streams of a run, or to one line on why they don't fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError, DataError
from contract.manifest import Rows
from contract.store import TargetStore
from trainer.recipes import Recipe, StreamConfig
from trainer.streams import Input, Stream, Streams


def resolve(recipe: Recipe, stores: Sequence[TargetStore]) -> Streams:
    """The recipe's streams over these stores."""
    streams = []
    for config, store in _chosen(recipe, stores):
        stream = _stream(recipe, config, store)
        _require_targets(recipe, stream)
        streams.append(stream)
    _require_one_store_per_dataset(streams)
    if not streams:
        raise DataError(
            f"{', '.join(str(store.path) for store in stores)}: no pairs of an image with a modality that "
            f"recipe {recipe.name} reads ({', '.join(recipe.inputs)}); the stores pair: "
            f"{', '.join(sorted({kind for store in stores for kind in store.manifest.pairs})) or 'nothing'}"
        )
    return Streams(streams, recipe.batch_size, recipe.seed)


def usable_rows(
    store: TargetStore, modality: str, keys: Sequence[str], split: str, languages: str | tuple[str, ...]
) -> npt.NDArray[np.bool_]:
    """Bool [rows]: in the split, in one of the languages, and not quarantined in any of these FieldSets."""
    mask = np.zeros(store.manifest.num_rows(modality), dtype=bool)
    mask[store.manifest.rows(modality, split, None if languages == "all" else languages)] = True
    return mask & store.usable(modality, [key for key in keys if key.startswith(f"{modality}/")])


def usable_pairs(
    store: TargetStore,
    pair: tuple[str, str],
    keys: Sequence[str],
    split: str,
    languages: str | tuple[str, ...],
) -> Rows:
    """(row of first, row of second), int64 [p, 2], whose both ends are usable, in ascending order."""
    pairs = store.manifest.positives(*pair)
    first, second = (usable_rows(store, modality, keys, split, languages) for modality in pair)
    kept = pairs[first[pairs[:, 0]] & second[pairs[:, 1]]]
    return kept[np.lexsort((kept[:, 1], kept[:, 0]))]


def _chosen(recipe: Recipe, stores: Sequence[TargetStore]) -> Iterator[tuple[StreamConfig, TargetStore]]:
    """Each stream to be read with its store."""
    if recipe.streams == "auto":
        for store in stores:
            for kind in store.manifest.pairs:
                if "image" in kind.split("-") and all(modality in recipe.inputs for modality in kind.split("-")):
                    yield StreamConfig(pair=kind), store
        return
    for number, config in enumerate(recipe.streams):
        named = [s for s in stores if config.store in ("", str(s.path), s.manifest.dataset)]
        having = [store for store in named if config.pair in store.manifest.pairs]
        if not having:
            raise ConfigError(
                f"streams.{number}: no store {config.store or 'at all'} with {config.pair} pairs; there are: "
                + "; ".join(f"{s.path} ({s.manifest.dataset}: {', '.join(s.manifest.pairs)})" for s in stores)
            )
        for store in having:
            yield config, store


def _stream(recipe: Recipe, config: StreamConfig, store: TargetStore) -> Stream:
    first, second = config.pair.split("-")
    inputs = {modality: _input(recipe, config, store, modality) for modality in (first, second)}
    targets = {name: store.find(first, field) for name, field in {**recipe.targets, **config.targets}.items()}
    keys = {input_.key for input_ in inputs.values()} | {ref.rpartition("/")[0] for ref in targets.values()}
    store.require_complete(sorted(keys))
    pairs = usable_pairs(store, (first, second), sorted(keys), config.split, recipe.languages)
    if len(pairs) < 2:
        raise DataError(
            f"{store.path}: {len(pairs)} usable {config.pair} pairs in split {config.split!r} for languages "
            f"{recipe.languages}; the manifest has splits {store.manifest.splits(first)} and languages "
            f"{store.manifest.languages()}"
        )
    anchors, starts = np.unique(pairs[:, 0], return_index=True)
    return Stream(
        store=store,
        pair=(first, second),
        inputs=inputs,
        targets=targets,
        weight=config.weight,
        anchors=anchors,
        starts=np.append(starts, len(pairs)).astype(np.int64),
        partners=pairs[:, 1],
    )


def _input(recipe: Recipe, config: StreamConfig, store: TargetStore, modality: str) -> Input:
    """The modality's field, and the lengths that its FieldSet keeps beside it, if any."""
    names = {**recipe.inputs, **config.inputs}
    if modality not in names:
        raise ConfigError(f"stream {config.pair}: `inputs` has no {modality}, only {', '.join(names)}")
    values = store.find(modality, names[modality])
    key = values.rpartition("/")[0]
    has_length = any(field.name == "length" for field in store.fieldsets[key].fields)
    return Input(values=values, length=f"{key}/length" if has_length else "")


def _require_targets(recipe: Recipe, stream: Stream) -> None:
    for name, objective in recipe.objectives.items():
        for target in objective.needs:
            if target not in stream.targets:
                fields = [
                    f"{key}/{field.name}"
                    for key, fieldset in stream.store.fieldsets.items()
                    if fieldset.modality == stream.pair[0]
                    for field in fieldset.fields
                ]
                raise ConfigError(
                    f"objective `{name}` needs a target `{target}`, which the recipe does not read for stream "
                    f"{stream.kind} (targets: {', '.join(stream.targets) or 'none'}); "
                    f"{stream.store.path} has: {', '.join(fields)}"
                )


def _require_one_store_per_dataset(streams: Sequence[Stream]) -> None:
    paths: dict[str, str] = {}
    for stream in streams:
        path, dataset = str(stream.store.path), stream.store.manifest.dataset
        if paths.setdefault(dataset, path) != path:
            raise ConfigError(f"{paths[dataset]} and {path} both hold dataset {dataset}; a run reads one of them")
