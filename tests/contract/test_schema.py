from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract import config
from contract.encodings import BFloat16, Float16, Float32, Int8, Int32, Lookup, Pixels, TopK
from contract.schema import (
    CHUNK_BYTES,
    ROWS_PER_SHARD,
    SMALL_ROW_BYTES,
    SMALL_ROWS_PER_SHARD,
    Field,
    FieldSet,
    chunk_shape,
    difference,
    row_bytes,
    shard_rows,
)

PATCHES = Field(name="patch_embeddings", shape=(197, 768), about={"grid": [14, 14]})
LOGITS = Field(name="logits", shape=(1000,), encoding=TopK(k=10), about={"temperature": 1.0})
LENGTH = Field(name="length", shape=(), encoding=Int32())
TOKENS = Field(name="tokens", shape=(64, 384), encoding=Lookup())
FIELDSET = FieldSet(
    name="teacher",
    modality="image",
    fields=(PATCHES, LOGITS),
    batch_size=64,
    provenance={"recipe": {"model": "vit", "precision": "float32"}, "command": "pipeline precompute"},
)


def test_a_field_is_stored_in_arrays_named_after_it_and_what_they_hold() -> None:
    assert PATCHES.arrays == {"patch_embeddings": ("float16", (197, 768))}
    assert LOGITS.arrays == {
        "logits.index": ("int16", (10,)),
        "logits.log_prob": ("float16", (10,)),
        "logits.log_tail": ("float16", ()),
    }
    assert TOKENS.arrays == {"tokens.ids": ("int32", (64,))}


def test_constants_and_names_of_bits_bear_the_fields_name_too() -> None:
    assert TOKENS.constants == ("tokens.table",)
    assert Field(name="pooled", shape=(8,), encoding=Int8()).constants == ("pooled.scale",)
    assert Field(name="pooled", shape=(8,), encoding=BFloat16()).logical_dtypes == {"pooled": "bfloat16"}
    assert PATCHES.constants == ()


@pytest.mark.parametrize(
    ("field", "size_bytes"), [(PATCHES, 197 * 768 * 2), (LOGITS, 42), (LENGTH, 4), (TOKENS, 256)]
)
def test_the_bytes_of_a_row_are_those_of_its_arrays(field: Field, size_bytes: int) -> None:
    assert field.row_bytes == size_bytes


def test_a_field_encodes_and_decodes_by_the_names_of_its_arrays() -> None:
    values = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    field = Field(name="pooled", shape=(5,), encoding=Int8())
    constants = field.calibrate(values)
    stored = field.encode(values, constants)
    assert (list(constants), list(stored)) == (["pooled.scale"], ["pooled"])
    assert field.num_clipped(values * 2, constants) > 0
    decoded = field.decode(stored, constants, np)
    np.testing.assert_allclose(decoded, values, atol=0.02)
    in_torch = field.decode(
        *({name: torch.from_numpy(a) for name, a in tree.items()} for tree in (stored, constants)), torch
    )
    np.testing.assert_allclose(in_torch.numpy(), decoded, rtol=1e-6)


def test_a_field_finds_its_own_among_the_arrays_of_others() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    fields = [Field(name=name, shape=(5,), encoding=Int8()) for name in "ab"]
    constants = fields[0].calibrate(values) | fields[1].calibrate(100 * values)
    stored = fields[0].encode(values, constants) | fields[1].encode(100 * values, constants)
    a, b = (field.decode(stored, constants, np) for field in fields)
    np.testing.assert_allclose(100 * a, b, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "figures"),
    [
        (Field(name="x", shape=(6,)), {"one_minus_cosine", "relative_rmse"}),
        (Field(name="x", shape=(6,), about={"temperature": 1.0}), {"kl_nats"}),
        (Field(name="x", shape=(6,), encoding=Int32()), set()),
        (Field(name="x", shape=()), set()),
    ],
)
def test_the_error_is_told_in_what_the_values_are(field: Field, figures: set[str]) -> None:
    values = np.random.default_rng(0).normal(size=(4, *field.shape))
    assert set(field.error(values, values)) == figures


def test_a_fieldset_knows_its_arrays_and_the_bytes_of_all_views() -> None:
    assert list(FIELDSET.arrays) == ["patch_embeddings", "logits.index", "logits.log_prob", "logits.log_tail"]
    assert FIELDSET.key == "image/teacher"
    assert FIELDSET.field("logits") is LOGITS
    assert FIELDSET.row_bytes == 197 * 768 * 2 + 42
    assert replace(FIELDSET, num_views=3).row_bytes == 4 * FIELDSET.row_bytes


def with_field(**changes: Any) -> FieldSet:
    return replace(FIELDSET, fields=(PATCHES, replace(LOGITS, **changes)))


CHANGED = {
    "recipe.precision: 'bfloat16', not 'float32'": replace(
        FIELDSET, provenance={"recipe": {"model": "vit", "precision": "bfloat16"}}
    ),
    "fields.logits.shape: [10], not [1000]": with_field(shape=(10,)),
    "fields.logits.encoding.k: 32, not 10": with_field(encoding=TopK(k=32)),
    "fields.logits.encoding.kind: 'float16', not 'topk'": with_field(encoding=Float16()),
    "fields.logits.about.temperature: 2.0, not 1.0": with_field(about={"temperature": 2.0}),
    "num_views: 3, not 0": replace(FIELDSET, num_views=3),
    "batch_size: 32, not 64": replace(FIELDSET, batch_size=32),
    "rows_per_shard: 256, not 512": replace(FIELDSET, rows_per_shard=256),
}


@pytest.mark.parametrize(("told", "changed"), CHANGED.items())
def test_what_can_change_the_values_changes_the_fingerprint_and_is_told(told: str, changed: FieldSet) -> None:
    assert changed.fingerprint != FIELDSET.fingerprint
    assert changed.difference(FIELDSET) == told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TopK(k=10), TopK(k=32)),
        (Float16(), Float16(non_finite=True)),
        (Float16(), BFloat16()),
        (Pixels(height=8, width=16), Pixels(height=16, width=8)),
    ],
)
def test_a_parameter_of_the_encoding_is_part_of_the_fingerprint(one: Any, other: Any) -> None:
    assert with_field(encoding=one).fingerprint != with_field(encoding=other).fingerprint


def test_versions_the_command_and_the_place_do_not_change_the_fingerprint() -> None:
    told = {"recipe": FIELDSET.provenance["recipe"], "command": "another", "versions": {"torch": "9"}}
    assert replace(FIELDSET, provenance=told, name="other").fingerprint == FIELDSET.fingerprint


@pytest.mark.parametrize("fieldset", [FIELDSET, *CHANGED.values()])
def test_a_fieldset_that_was_written_down_is_read_back_with_its_fingerprint(fieldset: FieldSet) -> None:
    again = config.parse(config.tree(fieldset), FieldSet, source="test")
    assert again.fingerprint == fieldset.fingerprint
    assert again.difference(fieldset) == ""
    assert again.arrays == fieldset.arrays


@given(st.integers(1, 10**6), st.integers(0, 100), st.integers(1, 4))
def test_the_rows_of_a_shard_are_a_power_of_two_and_no_more_than_fit(
    width: int, num_views: int, num_fields: int
) -> None:
    fields = [Field(name=f"x{i}", shape=(width,)) for i in range(num_fields)]
    rows = shard_rows(fields, num_views)
    assert rows.bit_count() == 1
    most = SMALL_ROWS_PER_SHARD if 2 * width * num_fields < SMALL_ROW_BYTES else ROWS_PER_SHARD
    assert rows == 1 or rows * (num_views + 1) <= most < 2 * rows * (num_views + 1)


@pytest.mark.parametrize(
    ("field", "num_views", "rows"),
    [
        (PATCHES, 0, 512),
        (PATCHES, 3, 128),
        (PATCHES, 2, 128),
        (PATCHES, 999, 1),
        (LOGITS, 0, 4096),
        (LOGITS, 7, 512),
    ],
)
def test_views_share_a_shard(field: Field, num_views: int, rows: int) -> None:
    assert shard_rows([field], num_views) == rows


@given(st.integers(1, 1 << 20), st.integers(1, 100), st.integers(0, 12).map(lambda power: 1 << power))
def test_an_inner_chunk_is_one_large_view_or_every_view_of_rows_that_divide_the_shard(
    bytes_per_view: int, views_per_row: int, rows_per_shard: int
) -> None:
    rows, views = chunk_shape(bytes_per_view, views_per_row, rows_per_shard)
    assert rows_per_shard % rows == 0
    if 2 * bytes_per_view > CHUNK_BYTES:
        assert (rows, views) == (1, 1)
    else:
        assert views == views_per_row
        assert rows == 1 or rows * views * bytes_per_view <= CHUNK_BYTES
        assert rows == rows_per_shard or 2 * rows * views * bytes_per_view > CHUNK_BYTES


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes"), [("float16", (197, 768), 302_592), ("int16", (10,), 20), ("float16", (), 2)]
)
def test_bytes_of_a_row(dtype: str, shape: tuple[int, ...], size_bytes: int) -> None:
    assert row_bytes(dtype, shape) == size_bytes


def test_a_difference_is_told_by_its_first_place_in_the_order_that_was_expected() -> None:
    found, expected = {"a": 1, "b": {"c": 2}}, {"b": {"c": 3, "d": 4}, "a": 0}
    assert difference(found, expected) == "b.c: 2, not 3"
    assert difference({"more": 1}, {}) == "more: 1, not None"
    assert difference(expected, expected) == ""


def test_an_encoding_is_float16_unless_chosen() -> None:
    assert PATCHES.encoding == Float16()
    assert Field(name="x", shape=(2,), encoding=Float32()).arrays == {"x": ("float32", (2,))}
