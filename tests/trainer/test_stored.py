from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.store import TargetStore
from trainer.stored import Buffers, StoredField


def test_buffer_comes_back_unless_more_rows_are_asked_for() -> None:
    buffers = Buffers(pinned=False)
    first = buffers.get("a", (8, 3), np.dtype("float16"))
    fewer = buffers.get("a", (5, 3), np.dtype("float16"))
    assert fewer.shape == (5, 3)
    assert fewer.data_ptr() == first.data_ptr()
    assert buffers.get("a", (8, 3), np.dtype("float16")).data_ptr() == first.data_ptr()
    assert buffers.get("b", (8, 3), np.dtype("float16")).data_ptr() != first.data_ptr()
    more = buffers.get("a", (9, 3), np.dtype("float16"))
    assert more.shape == (9, 3)
    assert buffers.get("a", (8, 3), np.dtype("float16")).data_ptr() == more.data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "uint16", "int16", "int32"])
def test_buffer_has_the_dtype_that_is_stored(dtype: str) -> None:
    assert Buffers(pinned=False).get("a", (2,), np.dtype(dtype)).numpy().dtype == dtype


def test_arrays_read_without_buffers_stay_as_they_are(store: TargetStore) -> None:
    field = StoredField(store=store, reference="image/teacher/logits")
    rows = np.arange(4)
    first = field.decode(field.read(rows, 0))
    field.read(rows + 10, 0)
    np.testing.assert_array_equal(first, store.load("image/teacher/logits", rows))


def test_constants_are_read_once_for_a_device(encoded_store: TargetStore) -> None:
    field = StoredField(store=encoded_store, reference="text/teacher/token_embeddings")
    field.decode(field.read(np.arange(4), 0))
    for path in Path(encoded_store.path).glob("text/teacher/*.*/c/**/*"):
        if path.is_file():
            path.unlink()
    decoded = field.decode(field.read(np.arange(4), 0))
    np.testing.assert_array_equal(decoded, encoded_store.load("text/teacher/token_embeddings", range(4)))
