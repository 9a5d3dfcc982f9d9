"""The frozen encoder that filled what the student reads, found again from what the store says of it."""

from __future__ import annotations

from dataclasses import dataclass

from contract.encodings import Encoding
from contract.schema import FieldSet
from encoders import Encoder
from trainer.source import encoder
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
    stream = next(stream for stream in streams.streams if modality in stream.inputs)
    input_ = stream.inputs[modality]
    fieldset = stream.store.fieldsets[input_.key]
    name = f"{stream.store.path}: {input_.key}"
    return Source(
        name=name,
        fieldset=fieldset,
        field=input_.values.rpartition("/")[2],
        encoding=stream.store.field(input_.values).encoding,
        has_length=bool(input_.length),
        encoder=encoder(fieldset, name, "it can't be exported"),
    )
