"""From a recipe and the stores at hand to the streams of a run, or to one line on why they don't fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError, DataError
from contract.manifest import Rows
from contract.schema import FieldSet, difference
from contract.storage import store_path
from contract.store import TargetStore
from trainer.captions import TEXT, Rewritten
from trainer.objectives import Objective
from trainer.recipes import Recipe, StreamConfig
from trainer.streams import Input, Stream, Streams
from trainer.words import Words, spread


def resolve(recipe: Recipe, stores: Sequence[TargetStore]) -> Streams:
    """The recipe's streams over these stores."""
    streams = []
    for config, store in _chosen(recipe, stores):
        stream = _stream(recipe, config, store)
        _require_targets(recipe, stream)
        streams.append(stream)
    streams = _with_words(recipe, streams)
    _require_one_store_per_dataset(streams)
    _require_one_maker_per_adapter(recipe, streams)
    if not streams:
        raise DataError(
            f"{', '.join(str(store.path) for store in stores)}: no pairs of an image with a modality that "
            f"recipe {recipe.name} reads ({', '.join(recipe.inputs)}); the stores pair: "
            f"{', '.join(sorted({kind for store in stores for kind in store.manifest.pairs})) or 'nothing'}"
        )
    for store in stores:
        if not any(stream.store is store for stream in streams):
            raise ConfigError(
                f"{store.path} was given, but no stream of recipe {recipe.name} reads it: it pairs "
                f"{', '.join(store.manifest.pairs) or 'nothing'}; leave it out"
            )
    return Streams(
        streams,
        _embedded_inputs(recipe, streams),
        recipe.batch_size,
        recipe.seed,
        verify_every=recipe.verify_every_epochs,
    )


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


def inputs_like(recipe: Recipe, streams: Streams, store: TargetStore) -> dict[str, Input]:
    """The inputs of a store that a run was not trained on, for each of its adapters that the store can feed.

    `ConfigError` where another encoder made them than the adapter was trained on.
    """
    computed = {fieldset.modality for fieldset in store.fieldsets.values()}
    found = {}
    for modality in streams.shapes():
        if modality in computed:
            stream = next(stream for stream in streams.streams if modality in stream.inputs)
            found[modality] = _input(recipe.inputs, store, modality, str(store.path))
            store.require_complete([found[modality].key])
            trained = stream.store, stream.inputs[modality].values
            _require_same_maker(f"input {modality}", (store, found[modality].values), trained)
    if not found:
        raise DataError(
            f"{store.path} has nothing that recipe {recipe.name} reads ({', '.join(streams.shapes())}); it has: "
            f"{', '.join(store.fieldsets) or 'nothing'}"
        )
    return found


def _chosen(recipe: Recipe, stores: Sequence[TargetStore]) -> Iterator[tuple[StreamConfig, TargetStore]]:
    """Each stream to be read with its store; `auto` takes what the recipe reads and some encoder has computed."""
    if recipe.streams == "auto":
        for store in stores:
            present = {fieldset.modality for fieldset in store.fieldsets.values()} & set(recipe.inputs)
            for kind in store.manifest.pairs:
                if "image" in kind.split("-") and present.issuperset(kind.split("-")):
                    yield StreamConfig(pair=kind), store
        return
    for number, config in enumerate(recipe.streams):
        named = [
            s for s in stores if config.store in ("", s.manifest.dataset) or store_path(config.store) == s.path
        ]
        having = [store for store in named if config.pair in _kinds(store)]
        if not having:
            raise ConfigError(
                f"streams.{number}: no store {config.store or 'at all'} has {config.pair}; there are: "
                + "; ".join(f"{s.path} ({s.manifest.dataset}: {', '.join(_kinds(s))})" for s in stores)
            )
        for store in having:
            yield config, store


def _kinds(store: TargetStore) -> list[str]:
    """What a stream may be of: the store's pairs, and each modality that an encoder has computed alone."""
    return [*store.manifest.pairs, *sorted({fieldset.modality for fieldset in store.fieldsets.values()})]


def _stream(recipe: Recipe, config: StreamConfig, store: TargetStore) -> Stream:
    _require_objectives(recipe, config)
    first, *second = modalities = tuple(config.pair.split("-"))
    _require_beside(config, store)
    names = {**recipe.inputs, **config.inputs}
    inputs = {modality: _input(names, store, modality, config.pair) for modality in (*modalities, *config.beside)}
    targets = {name: store.find(first, field) for name, field in {**recipe.targets, **config.targets}.items()}
    classes = {target for objective in recipe.objectives.values() for target in objective.classes}
    for name, reference in targets.items():
        _require_dimensions(store, reference, f"targets.{name}", (1,) if name in classes else (1, 2))
    keys = {input_.key for input_ in inputs.values()} | {ref.rpartition("/")[0] for ref in targets.values()}
    store.require_complete(sorted(keys))
    languages = config.languages or recipe.languages
    if second:
        pairs = usable_pairs(store, (first, second[0]), sorted(keys), config.split, languages)
    else:
        rows = np.flatnonzero(usable_rows(store, first, sorted(keys), config.split, languages))
        pairs = np.stack([rows, rows], axis=1)
    beside = {
        modality: usable_pairs(store, (first, modality), sorted(keys), config.split, languages)
        for modality in config.beside
    }
    for others in beside.values():
        pairs = pairs[np.isin(pairs[:, 0], others[:, 0])]
    anchors, starts = np.unique(pairs[:, 0], return_index=True)
    if len(anchors) < 2:
        raise DataError(
            f"{store.path}: {len(anchors)} {first} items{' with a usable ' + second[0] if second else ''} "
            f"({config.pair}) in split {config.split!r} for languages {languages}, and a batch compares two; there "
            f"are splits {store.manifest.splits(first)} and languages {store.manifest.languages()}"
        )
    return Stream(
        store=store,
        pair=modalities,
        split=config.split,
        inputs=inputs,
        targets=targets,
        weight=config.weight,
        anchors=anchors,
        starts=np.append(starts, len(pairs)).astype(np.int64),
        partners=pairs[:, 1],
        num_views=_num_views(recipe, store, inputs, targets, first),
        first_view=0 if recipe.views == "all" else 1,
        shows_others=any(objective.reads_others for objective in _chosen_objectives(recipe, config.objectives)),
        rewritten=_rewritten(config, store, inputs),
        objectives=config.objectives,
        # They are in ascending order: the first of each anchor's.
        beside={m: others[np.searchsorted(others[:, 0], anchors), 1] for m, others in beside.items()},
    )


def _require_objectives(recipe: Recipe, config: StreamConfig) -> None:
    for name in config.objectives or ():
        if name not in recipe.objectives:
            raise ConfigError(
                f"stream {config.pair}: objectives: the recipe has no {name}, only {', '.join(recipe.objectives)}"
            )


def _require_beside(config: StreamConfig, store: TargetStore) -> None:
    first = config.pair.partition("-")[0]
    for modality in config.beside:
        kind = f"{first}-{modality}"
        if modality in config.pair.split("-") or kind not in store.manifest.pairs:
            raise ConfigError(
                f"stream {config.pair}: beside: {store.path} has no pairs {kind} that would add {modality}; "
                f"it has {', '.join(store.manifest.pairs)}"
            )


def _chosen_objectives(recipe: Recipe, names: tuple[str, ...] | None) -> list[Objective]:
    """Those of the recipe that a stream's batches are for."""
    return [objective for name, objective in recipe.objectives.items() if names is None or name in names]


def _rewritten(config: StreamConfig, store: TargetStore, inputs: Mapping[str, Input]) -> Rewritten | None:
    if not config.transforms:
        return None
    if TEXT not in inputs:
        raise ConfigError(f"stream {config.pair}: transforms rewrite captions, and it has none")
    return Rewritten(store, inputs[TEXT].values, config.transforms)


def _with_words(recipe: Recipe, streams: Sequence[Stream]) -> list[Stream]:
    """The streams, those with captions that tell of their words if an objective that they are for reads them.

    All have one vocabulary, as they have one adapter.
    """
    reading = [
        stream
        for stream in streams
        if TEXT in stream.pair
        and any(objective.reads_words for objective in _chosen_objectives(recipe, stream.objectives))
    ]
    if not reading:
        return list(streams)
    first, input_ = reading[0], reading[0].inputs[TEXT]
    if not input_.length:
        raise ConfigError(
            f"{first.store.path} {input_.values} is no sequence of tokens, and the recipe's objectives read words; "
            "choose a field with a length, such as token_embeddings"
        )
    words = Words(first.store.fieldsets[input_.key], str(first.store.path), partial(_training_texts, reading))
    return [replace(stream, words=words) if stream in reading else stream for stream in streams]


def _training_texts(streams: Sequence[Stream]) -> list[str]:
    """The captions that streams train on, each once, and what transforms may add to them."""
    rows: dict[str, tuple[TargetStore, list[Rows]]] = {}
    for stream in streams:
        own = stream.anchors if stream.pair[0] == TEXT else stream.partners
        rows.setdefault(str(stream.store.path), (stream.store, []))[1].append(own)
    texts = spread([(store, np.unique(np.concatenate(parts))) for store, parts in rows.values()])
    return texts + [text for stream in streams if stream.rewritten for text in stream.rewritten.additions]


def _num_views(
    recipe: Recipe, store: TargetStore, inputs: Mapping[str, Input], targets: Mapping[str, str], anchor: str
) -> dict[str, int]:
    """Views to draw from by modality; `ConfigError` if a target is not of the views that the student is shown."""
    if recipe.views == "evaluation":
        return dict.fromkeys(inputs, 0)
    shown = store.fieldsets[inputs[anchor].key]
    for name, reference in targets.items():
        other = store.fieldsets[reference.rpartition("/")[0]]
        if shown.num_views and _augmentation(other) != _augmentation(shown):
            raise ConfigError(
                f"targets.{name}: {store.path} {reference} is not of the same views as {inputs[anchor].values}: "
                f"{difference(_augmentation(other), _augmentation(shown))}; compute both with the same --views, or "
                "train with `views: evaluation`"
            )
    found = {modality: store.fieldsets[input_.key].num_views for modality, input_ in inputs.items()}
    return {modality: num + (num > 0 and recipe.views == "all") for modality, num in found.items()}


def _augmentation(fieldset: FieldSet) -> dict[str, Any]:
    recipe = fieldset.provenance.get("recipe", {})
    return {"num_views": fieldset.num_views, "augmentation": recipe.get("augmentation")}


def _input(names: Mapping[str, str], store: TargetStore, modality: str, pair: str) -> Input:
    """The modality's field, and the lengths that its FieldSet keeps beside it, if any."""
    if modality not in names:
        raise ConfigError(f"stream {pair}: `inputs` has no {modality}, only {', '.join(names)}")
    values = store.find(modality, names[modality])
    _require_dimensions(store, values, f"inputs.{modality}", (1, 2))
    key = values.rpartition("/")[0]
    is_sequence = len(store.field(values).shape) == 2
    has_length = is_sequence and any(field.name == "length" for field in store.fieldsets[key].fields)
    return Input(values=values, length=f"{key}/length" if has_length else "")


def _embedded_inputs(recipe: Recipe, streams: Sequence[Stream]) -> list[tuple[TargetStore, dict[str, Input]]]:
    """For each store, the input of every modality that the run trains an adapter for and the store can feed it.

    A store of image-audio pairs may hold captions as well, which another store's pairs teach to read.
    """
    trained = {modality for stream in streams for modality in stream.inputs}
    found: dict[str, tuple[TargetStore, dict[str, Input]]] = {}
    for stream in streams:
        _, inputs = found.setdefault(str(stream.store.path), (stream.store, {}))
        inputs.update(stream.inputs)
    for store, inputs in found.values():
        for modality in sorted(trained - inputs.keys()):
            if any(fieldset.modality == modality for fieldset in store.fieldsets.values()):
                inputs[modality] = _input(recipe.inputs, store, modality, "-".join(sorted(trained)))
                store.require_complete([inputs[modality].key])
    return list(found.values())


def _require_dimensions(store: TargetStore, reference: str, key: str, allowed: tuple[int, ...]) -> None:
    shape = store.field(reference).shape
    if len(shape) not in allowed:
        what = "a vector for each item" if allowed == (1,) else "a vector or a sequence of vectors for each item"
        raise ConfigError(f"{key}: {store.path} has {reference} of shape {list(shape)}, and {what} is expected")


def _require_one_maker_per_adapter(recipe: Recipe, streams: Sequence[Stream]) -> None:
    """Raise `ConfigError` where one adapter, or one target, would be fed by two different encoders.

    Of targets that are no classes, each modality has its own.
    """
    classes = {target for objective in recipe.objectives.values() for target in objective.classes}
    made: dict[str, tuple[TargetStore, str]] = {}
    for stream in streams:
        inputs = {f"input {modality}": input_.values for modality, input_ in stream.inputs.items()}
        targets = {
            f"target {name}{'' if name in classes else f' of {stream.pair[0]}'}": reference
            for name, reference in stream.targets.items()
        }
        for use, reference in {**inputs, **targets}.items():
            own = stream.store, reference
            _require_same_maker(use, own, made.setdefault(use, own))


def _require_same_maker(use: str, one: tuple[TargetStore, str], other: tuple[TargetStore, str]) -> None:
    """Raise `ConfigError` if two fields, (store, reference) each, come from different encoders."""
    wrong = difference(_identity(*one), _identity(*other))
    if wrong:
        raise ConfigError(
            f"{use}: {one[0].path} {one[1]} and {other[0].path} {other[1]} come from different "
            f"encoders: {wrong}; compute both with the same one, or train them in two runs"
        )


def _identity(store: TargetStore, reference: str) -> dict[str, Any]:
    key, _, name = reference.rpartition("/")
    fieldset = store.fieldsets[key]
    return {
        "field": name,
        "shape": list(fieldset.field(name).shape),
        "recipe": _maker(fieldset),
    }


def _maker(fieldset: FieldSet) -> Any:
    """What made the values: of an imported file the encoder that filled it, where that is known, not the file."""
    recipe = dict(fieldset.provenance.get("recipe", {}))
    if recipe.get("kind") != "hdf5":
        return recipe
    return recipe.get("exported", {}).get("recipe") or {k: v for k, v in recipe.items() if k != "content"}


def _require_targets(recipe: Recipe, stream: Stream) -> None:
    for name, objective in recipe.objectives.items():
        if stream.objectives is not None and name not in stream.objectives:
            continue
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
