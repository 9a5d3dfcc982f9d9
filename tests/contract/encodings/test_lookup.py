import numpy as np
import pytest
import torch

from contract.encodings import Lookup, NotEncodableError

TABLE = np.random.default_rng(0).normal(size=(30_522, 4)).astype(np.float32)
CONSTANTS = {"table": TABLE}


def test_tokens_are_the_rows_of_the_table() -> None:
    ids = np.random.default_rng(1).integers(0, len(TABLE), (9, 7))
    decoded = Lookup().decode(Lookup().encode(ids, CONSTANTS), CONSTANTS, (7, 4), np)
    embedded = torch.nn.functional.embedding(torch.from_numpy(ids), torch.from_numpy(TABLE))
    np.testing.assert_array_equal(decoded, embedded.numpy())


@pytest.mark.parametrize("first", [1.0, -1.0, np.inf])
def test_padding_is_zeros_whatever_the_table_begins_with(first: float) -> None:
    table = np.full((2, 3), first, np.float32)
    stored = {"ids": np.array([[1, -1], [-1, -1]], np.int32)}
    decoded = Lookup().decode(stored, {"table": table}, (2, 3), np)
    in_torch = Lookup().decode(
        {"ids": torch.from_numpy(stored["ids"])}, {"table": torch.from_numpy(table)}, (2, 3), torch
    )
    expected = np.array([[[first] * 3, [0] * 3], [[0] * 3] * 2], np.float32)
    for found in (decoded, in_torch.numpy()):
        assert found.tobytes() == expected.tobytes()  # no -0.0 either
    assert (table == first).all()


@pytest.mark.parametrize(("bad", "told"), [(30_522, "30,522"), (-2, "-2"), (2**40, "1,099,511,627,776")])
def test_ids_that_the_table_does_not_have_are_refused(bad: int, told: str) -> None:
    ids = np.array([[0, 30_521], [-1, bad]])
    with pytest.raises(NotEncodableError) as caught:
        Lookup().encode(ids, CONSTANTS)
    assert str(caught.value) == (
        f"1 of 4 values are not among the 30,522 rows of the table; the largest of them is {told}"
    )
    assert caught.value.row == 1
