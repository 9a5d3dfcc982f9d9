"""The frozen encoder that filled a FieldSet, found again from what the store says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from contract import config
from contract.errors import StoreError
from contract.schema import FieldSet, difference
from encoders import ENCODERS, Encoder


def encoder(fieldset: FieldSet, name: str, so: str) -> Encoder:
    """The encoder of a FieldSet; `name` says in errors whose it is, and `so` what can't be done without it.

    `StoreError` where it is not known, not here any more, or another one now.
    """
    provenance = fieldset.provenance
    if "encoder" not in provenance:
        raise StoreError(f"{name} was not filled by an encoder that Precept knows, so {so}")
    found: Encoder = config.parse(provenance["encoder"], ENCODERS[fieldset.modality], source=name)
    if "custom" in _kinds(provenance["encoder"]):
        return found  # no code that a store names is run; what it is can't be told anyway
    recipe = {key: value for key, value in provenance["recipe"].items() if key != "augmentation"}
    now = json.loads(json.dumps(found.recipe()))
    if now != recipe:
        raise StoreError(
            f"{name}: its encoder is not the one that filled the store: {difference(now, recipe)}; put the model's "
            "files back"
        )
    return found


def _kinds(encoder: Mapping[str, Any]) -> set[str]:
    return {encoder["kind"]}.union(*(_kinds(member) for member in encoder.get("members", ())))
