"""The frozen encoder that filled what the student reads, found again from what the store says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract import config
from contract.encodings import Encoding
from contract.errors import StoreError
from contract.schema import FieldSet, difference
from encoders import ENCODERS, Encoder
from trainer.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one modality's adapter reads: `field` of a FieldSet, as it is stored; `name` is for errors."""

    name: str
    fieldset: FieldSet
    field: str
    encoding: Encoding
    has_length: bool
    encoder: Encoder


def find(streams: Streams, modality: str) -> Source:
    """The modality's source, of its first stream: those of all others are of the same encoder.

    `StoreError` where the encoder is not here any more, or is another one now.
    """
    stream = next(stream for stream in streams.streams if modality in stream.pair)
    input_ = stream.inputs[modality]
    fieldset = stream.store.fieldsets[input_.key]
    name = f"{stream.store.path}: {input_.key}"
    return Source(
        name=name,
        fieldset=fieldset,
        field=input_.values.rpartition("/")[2],
        encoding=stream.store.field(input_.values).encoding,
        has_length=bool(input_.length),
        encoder=_encoder(fieldset, name),
    )


def _encoder(fieldset: FieldSet, name: str) -> Encoder:
    provenance = fieldset.provenance
    if "encoder" not in provenance:
        raise StoreError(f"{name} was not filled by an encoder that Precept knows, so it can't be exported")
    encoder: Encoder = config.parse(provenance["encoder"], ENCODERS[fieldset.modality], source=name)
    if "custom" in _kinds(provenance["encoder"]):
        return encoder  # no code that a store names is run; what it is can't be exported anyway
    recipe = {key: value for key, value in provenance["recipe"].items() if key != "augmentation"}
    now = json.loads(json.dumps(encoder.recipe()))
    if now != recipe:
        raise StoreError(
            f"{name}: its encoder is not the one that filled the store: {difference(now, recipe)}; put the model's "
            "files back"
        )
    return encoder


def _kinds(encoder: Mapping[str, Any]) -> set[str]:
    return {encoder["kind"]}.union(*(_kinds(member) for member in encoder.get("members", ())))
