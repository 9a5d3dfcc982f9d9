"""What every encoding has to do: a new one needs an example below, and then passes all of this."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch

from contract import config
from contract.encodings import (
    BFloat16,
    Encoding,
    Float8,
    Float16,
    Float32,
    FloatEncoding,
    Int8,
    Int32,
    LogitsEncoding,
    Lookup,
    NotEncodableError,
    PatchEncoding,
    Pixels,
    TokenEncoding,
    TopK,
)
from contract.encodings.encoding import BLOCK_VALUES, blocks, require_finite

RNG = np.random.default_rng(0)
NUM_ROWS = 7


@dataclass(frozen=True, kw_only=True)
class Example:
    encoding: Any
    shape: tuple[int, ...]
    values: np.ndarray
    given: dict[str, np.ndarray]  # constants that are not calibrated
    exact: bool  # whether decoding does no arithmetic: the same bits in NumPy and in torch

    @property
    def constants(self) -> dict[str, np.ndarray]:
        return self.given | self.encoding.calibrate(self.values)

    def stored(self) -> dict[str, np.ndarray]:
        return self.encoding.encode(self.values, self.constants)

    def decode(self, stored: dict[str, np.ndarray]) -> np.ndarray:
        return self.encoding.decode(stored, self.constants, self.shape, np)

    def decode_in_torch(self, stored: dict[str, np.ndarray]) -> torch.Tensor:
        arrays, constants = (
            {name: torch.from_numpy(a) for name, a in tree.items()} for tree in (stored, self.constants)
        )
        return self.encoding.decode(arrays, constants, self.shape, torch)


def patches(encoding: Any, *, exact: bool = True) -> Example:
    values = RNG.normal(size=(NUM_ROWS, 5, 8)).astype(np.float32)
    return Example(encoding=encoding, shape=(5, 8), values=values, given={}, exact=exact)


EXAMPLES = {
    Float16: patches(Float16()),
    Float32: patches(Float32()),
    BFloat16: patches(BFloat16()),
    Float8: patches(Float8()),
    Int8: patches(Int8(), exact=False),
    Int32: Example(encoding=Int32(), shape=(), values=RNG.integers(-9, 99, NUM_ROWS), given={}, exact=True),
    TopK: Example(
        encoding=TopK(k=4),
        shape=(40,),
        values=RNG.normal(size=(NUM_ROWS, 40)).astype(np.float32) * 5,
        given={},
        exact=False,
    ),
    Lookup: Example(
        encoding=Lookup(),
        shape=(6, 8),
        values=RNG.integers(-1, 30, (NUM_ROWS, 6), dtype=np.int32),
        given={"table": RNG.normal(size=(30, 8)).astype(np.float32)},
        exact=True,
    ),
    Pixels: Example(
        encoding=Pixels(height=8, width=12),
        shape=(6, 5),
        values=RNG.integers(0, 256, (NUM_ROWS, 8, 12, 3), dtype=np.uint8),
        given={
            "weight": RNG.normal(size=(5, 4, 4, 3)).astype(np.float32) / 1000,
            "bias": RNG.normal(size=5).astype(np.float32),
        },
        exact=False,
    ),
}
MEMBERS = get_args(get_args(Encoding)[0])
every_encoding = pytest.mark.parametrize(
    "example", [pytest.param(EXAMPLES.get(member), id=member.__name__) for member in MEMBERS]
)


def test_every_encoding_has_an_example() -> None:
    assert set(EXAMPLES) == set(MEMBERS)


@pytest.mark.parametrize("choices", [FloatEncoding, LogitsEncoding, PatchEncoding, TokenEncoding])
def test_what_a_configuration_may_choose_is_an_encoding(choices: Any) -> None:
    assert set(get_args(get_args(choices)[0])) <= set(MEMBERS)


@every_encoding
def test_a_configuration_chooses_it_by_its_kind(example: Example) -> None:
    chosen = config.parse(config.tree(example.encoding), Encoding, source="test")
    assert chosen == example.encoding
    assert type(chosen) is type(example.encoding)


@every_encoding
def test_it_takes_what_it_says_that_it_takes(example: Example) -> None:
    dtype, shape = example.encoding.input(example.shape)
    assert (example.values.dtype, example.values.shape) == (np.dtype(dtype), (NUM_ROWS, *shape))


@every_encoding
@pytest.mark.parametrize("num_rows", [0, 1, NUM_ROWS])
def test_it_stores_the_arrays_that_it_promises(example: Example, num_rows: int) -> None:
    stored = example.encoding.encode(example.values[:num_rows], example.constants)
    promised = example.encoding.stored(example.shape)
    assert {name: (array.dtype, array.shape) for name, array in stored.items()} == {
        name: (np.dtype(dtype), (num_rows, *shape)) for name, (dtype, shape) in promised.items()
    }


@every_encoding
@pytest.mark.parametrize("num_rows", [0, 1, NUM_ROWS])
def test_it_decodes_to_rows_of_the_logical_shape_in_numpy_and_torch(example: Example, num_rows: int) -> None:
    stored = {name: array[:num_rows] for name, array in example.stored().items()}
    decoded, in_torch = example.decode(stored), example.decode_in_torch(stored)
    kind = "int32" if example.encoding.kind == "int32" else "float32"
    assert (decoded.dtype.name, decoded.shape) == (kind, (num_rows, *example.shape))
    assert (in_torch.dtype, in_torch.shape) == (getattr(torch, kind), (num_rows, *example.shape))


@every_encoding
def test_torch_decodes_to_what_numpy_decodes_to(example: Example) -> None:
    stored = example.stored()
    decoded, in_torch = example.decode(stored), example.decode_in_torch(stored).numpy()
    if example.exact:
        np.testing.assert_array_equal(in_torch, decoded)
    else:
        np.testing.assert_allclose(in_torch, decoded, rtol=1e-6, atol=1e-6)


@every_encoding
def test_a_row_is_stored_and_decoded_alike_whatever_its_neighbours(example: Example) -> None:
    stored = example.stored()
    alone = example.encoding.encode(example.values[3:4], example.constants)
    for name, array in stored.items():
        np.testing.assert_array_equal(array[3:4], alone[name])
    np.testing.assert_allclose(example.decode(alone), example.decode(stored)[3:4], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("member", get_args(get_args(TokenEncoding)[0]))
def test_a_sequence_that_is_cut_as_it_is_stored_is_decoded_to_the_cut(member: type) -> None:
    example = EXAMPLES[member]
    stored = example.stored()
    cut = {name: array[:, :2] for name, array in stored.items()}
    np.testing.assert_array_equal(example.decode(cut), example.decode(stored)[:, :2])
    np.testing.assert_array_equal(example.decode_in_torch(cut), example.decode_in_torch(stored)[:, :2])


@every_encoding
def test_what_comes_in_is_not_written_to(example: Example) -> None:
    values, stored = example.values.copy(), example.stored()
    for array in (values, *stored.values()):
        array.flags.writeable = False
    again = example.encoding.encode(values, example.constants)
    for name, array in stored.items():
        np.testing.assert_array_equal(again[name], array)
    example.decode(stored)


@every_encoding
def test_values_that_do_not_lie_one_after_the_other_are_stored_alike(example: Example) -> None:
    strided = np.repeat(example.values, 2, axis=0)[::2]
    assert not strided.flags.c_contiguous
    for name, array in example.encoding.encode(strided, example.constants).items():
        np.testing.assert_array_equal(array, example.stored()[name])


@every_encoding
def test_its_constants_are_those_that_it_names(example: Example) -> None:
    assert set(example.constants) == set(example.encoding.constants)
    assert set(example.encoding.calibrate(example.values)) == (
        set(example.encoding.constants) if example.encoding.calibrated else set()
    )


@every_encoding
def test_nothing_of_the_sample_that_it_was_calibrated_on_is_clipped(example: Example) -> None:
    assert example.encoding.num_clipped(example.values, example.constants) == 0


@every_encoding
def test_bits_are_named_only_for_arrays_that_it_stores(example: Example) -> None:
    stored = example.encoding.stored(example.shape)
    for name, dtype in example.encoding.logical_dtypes(example.shape).items():
        assert getattr(torch, dtype).itemsize == np.dtype(stored[name][0]).itemsize


@pytest.mark.parametrize("member", [m for m, example in EXAMPLES.items() if example.values.dtype == np.float32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_the_first_row_named(member: type, bad: float) -> None:
    example = EXAMPLES[member]
    values = example.values.copy()
    values[4:6, ..., 1] = bad
    num_bad = int((~np.isfinite(values)).sum())
    what = f"({num_bad} NaN, 0 infinite)" if np.isnan(bad) else f"(0 NaN, {num_bad} infinite)"
    with pytest.raises(NotEncodableError) as caught:
        example.encoding.encode(values, example.constants)
    assert str(caught.value) == f"{num_bad} of {values.size} values are not finite {what}"
    assert caught.value.row == 4


@pytest.mark.parametrize("at", [0, BLOCK_VALUES - 1, BLOCK_VALUES, 3 * BLOCK_VALUES // 2 - 1])
def test_a_single_bad_value_is_found_wherever_it_is(at: int) -> None:
    values = np.zeros((3 * BLOCK_VALUES // 2 // 8, 8), np.float32)
    values.flat[at] = np.nan
    with pytest.raises(NotEncodableError) as caught:
        require_finite(values)
    assert caught.value.row == at // 8


@pytest.mark.parametrize("shape", [(0, 3), (1,), (5, 0), (1000,), (3, BLOCK_VALUES + 1), (300, 40, 50)])
def test_blocks_are_the_rows_in_order(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(np.concatenate([values[:0], *blocks(values)]), values)
    assert all(block.size <= max(BLOCK_VALUES, values[0].size) for block in blocks(values))
