from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from contract.encodings import BFloat16, Float8, Float16, Float32, Int32, NotEncodableError

FORMATS = [(Float16(), torch.float16), (BFloat16(), torch.bfloat16), (Float8(), torch.float8_e4m3fn)]
every_format = pytest.mark.parametrize(("encoding", "dtype"), FORMATS)
LARGEST = {torch.float16: 65504.0, torch.bfloat16: 3.3895313892515355e38, torch.float8_e4m3fn: 448.0}
# Halfway from the largest to what would be the next one; what is below it rounds to the largest. Of the even two
# halves, float8's is: the largest ends in a 0, those of float16 and bfloat16 in a 1.
TOO_LARGE = {
    torch.float16: 65520.0,
    torch.bfloat16: 3.3961775292304601e38,
    torch.float8_e4m3fn: float(np.nextafter(np.float32(464), np.float32(465))),
}


def encode(encoding: Any, values: np.ndarray) -> np.ndarray:
    return encoding.encode(values, {})[""]


def decode(encoding: Any, stored: np.ndarray) -> np.ndarray:
    return encoding.decode({"": stored}, {}, stored.shape[1:], np)


def bits(array: np.ndarray | torch.Tensor) -> np.ndarray:
    width = array.itemsize
    if isinstance(array, torch.Tensor):
        return array.view({1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[width]).numpy()
    return array.view(f"u{width}")


def all_of(dtype: torch.dtype) -> np.ndarray:
    """Every finite value that the dtype has, float32, rising."""
    patterns = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int32)
    values = patterns.to({1: torch.uint8, 2: torch.uint16}[dtype.itemsize]).view(dtype).float().numpy()
    return np.unique(values[np.isfinite(values)])


@every_format
def test_values_of_every_magnitude_are_stored_as_torch_casts_them(encoding: Any, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    exponents = rng.uniform(-149, np.log2(LARGEST[dtype]), 20_000)
    values = (rng.choice([-1, 1], 20_000) * 2**exponents).astype(np.float32)
    np.testing.assert_array_equal(bits(encode(encoding, values)), bits(torch.from_numpy(values).to(dtype)))


@every_format
def test_halves_are_stored_as_torch_casts_them(encoding: Any, dtype: torch.dtype) -> None:
    exact = all_of(dtype)
    halves = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    values = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), np.nextafter(halves, np.float32(0))])
    np.testing.assert_array_equal(bits(encode(encoding, values)), bits(torch.from_numpy(values).to(dtype)))


@every_format
def test_every_value_of_the_format_comes_back(encoding: Any, dtype: torch.dtype) -> None:
    exact = np.concatenate([all_of(dtype), np.float32([-0.0])])
    decoded = decode(encoding, encode(encoding, exact))
    np.testing.assert_array_equal(bits(decoded), bits(exact))


@every_format
@pytest.mark.parametrize("sign", [1, -1])
def test_what_rounds_to_the_largest_is_held(encoding: Any, dtype: torch.dtype, sign: int) -> None:
    below = np.nextafter(np.float32(TOO_LARGE[dtype]), np.float32(0))
    decoded = decode(encoding, encode(encoding, sign * np.array([LARGEST[dtype], below], np.float32)))
    np.testing.assert_array_equal(decoded, np.float32([sign * LARGEST[dtype]] * 2))


@every_format
@pytest.mark.parametrize("sign", [1, -1])
def test_what_does_not_fit_is_counted_and_the_first_row_named(encoding: Any, dtype: torch.dtype, sign: int) -> None:
    values = np.zeros((6, 2), np.float32)
    values[2:4, 1] = sign * np.float32(TOO_LARGE[dtype])
    with pytest.raises(NotEncodableError) as caught:
        encode(encoding, values)
    assert str(caught.value) == (
        f"2 of 12 values do not fit {encoding.kind}, whose largest is {LARGEST[dtype]:g}; "
        f"the largest of them is {values[2, 1]:g}"
    )
    assert caught.value.row == 2


@given(st_numpy.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_values_are_stored_as_torch_casts_them_or_refused(values: np.ndarray) -> None:
    for encoding, dtype in FORMATS:
        if (np.abs(values) < np.float32(TOO_LARGE[dtype])).all():
            stored = encode(encoding, values)
            np.testing.assert_array_equal(bits(stored), bits(torch.from_numpy(values).to(dtype)))
        else:
            with pytest.raises(NotEncodableError):
                encode(encoding, values)


@pytest.mark.parametrize(
    ("encoding", "relative", "smallest"),
    [(Float16(), 2**-11, 2**-14), (BFloat16(), 2**-8, 2**-126), (Float8(), 2**-4, 2**-6)],
)
def test_the_relative_error_is_what_the_docstring_says(encoding: Any, relative: float, smallest: float) -> None:
    values = (smallest * 2 ** np.random.default_rng(0).uniform(0, 14, 10_000)).astype(np.float32)
    errors = np.abs(decode(encoding, encode(encoding, values)).astype(np.float64) / values - 1)
    assert relative / 2 < errors.max() <= relative


@pytest.mark.parametrize(("encoding", "absolute"), [(Float16(), 2**-25), (Float8(), 2**-10)])
def test_small_values_have_an_absolute_error(encoding: Any, absolute: float) -> None:
    values = np.random.default_rng(0).uniform(0, 2**5 * absolute, 1000).astype(np.float32)
    assert np.abs(decode(encoding, encode(encoding, values)) - values).max() <= absolute


def test_float32_is_exact() -> None:
    values = np.array([[0.1, -0.0, 1e-45, -3.4028235e38]], np.float32)
    np.testing.assert_array_equal(bits(decode(Float32(), encode(Float32(), values))), bits(values))


ALLOWING = [Float16(non_finite=True), Float32(non_finite=True), BFloat16(non_finite=True)]
NON_FINITE = np.array([[1.0, np.nan], [np.inf, -np.inf]], np.float32)


@pytest.mark.parametrize("encoding", ALLOWING)
def test_nan_and_infinity_are_kept_where_they_are_allowed(encoding: Any) -> None:
    np.testing.assert_array_equal(decode(encoding, encode(encoding, NON_FINITE)), NON_FINITE)


@pytest.mark.parametrize("encoding", ALLOWING)
def test_a_signalling_nan_is_kept_without_a_warning(encoding: Any) -> None:
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(decode(encoding, encode(encoding, signalling))).all()


@pytest.mark.parametrize("encoding", [Float16(non_finite=True), BFloat16(non_finite=True)])
def test_what_becomes_infinite_is_refused_even_where_infinity_is_allowed(encoding: Any) -> None:
    values = np.concatenate([NON_FINITE, np.float32([[3.4e38, 0]])])
    with pytest.raises(NotEncodableError, match=f"1 of 6 values do not fit {encoding.kind}") as caught:
        encode(encoding, values)
    assert caught.value.row == 2


@pytest.mark.parametrize("encoding", [Float16(), Float32(), BFloat16(), Float8()])
def test_float64_beyond_float32_is_refused(encoding: Any) -> None:
    with pytest.raises(NotEncodableError, match="the largest of them is -1e\\+39") as caught:
        encode(encoding, np.array([0, -1e39]))
    assert caught.value.row == 1


def test_whole_numbers_are_exact_to_the_bounds_of_int32() -> None:
    counts = np.array([0, -5, 2**31 - 1, -(2**31)])
    np.testing.assert_array_equal(decode(Int32(), encode(Int32(), counts)), counts)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.uint64])
def test_whole_numbers_of_any_dtype_are_taken(dtype: type) -> None:
    assert encode(Int32(), np.array([0, 100], dtype)).tolist() == [0, 100]


@pytest.mark.parametrize(("worst", "told"), [(2**31, "2,147,483,648"), (-(2**63), "-9,223,372,036,854,775,808")])
def test_whole_numbers_beyond_int32_are_refused(worst: int, told: str) -> None:
    with pytest.raises(NotEncodableError) as caught:
        encode(Int32(), np.array([7, 2**31, worst]))
    assert str(caught.value) == f"2 of 3 values do not fit int32; the largest of them is {told}"
    assert caught.value.row == 1
