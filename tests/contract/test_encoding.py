import numpy as np
import pytest
import torch

from contract.encoding import Float16, Float32, Int32, NotEncodableError


def test_float16_keeps_values_to_its_precision_in_numpy_and_torch() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    stored = Float16().encode(values)
    decoded = Float16().decode(stored, np)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, values, rtol=2**-11)
    on_device = Float16().decode({"": torch.from_numpy(stored[""])}, torch)
    np.testing.assert_array_equal(on_device.numpy(), decoded)


def test_float32_and_int32_are_exact() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(Float32().decode(Float32().encode(values), np), values)
    counts = np.array([0, -5, 2**31 - 1])
    np.testing.assert_array_equal(Int32().decode(Int32().encode(counts), np), counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", [Float16(), Float32()])
def test_values_that_are_not_finite_name_their_row(bad: float, encoding: Float16 | Float32) -> None:
    values = np.zeros((4, 3), np.float32)
    values[2, 1] = bad
    with pytest.raises(NotEncodableError, match="1 of 3 values are not finite") as caught:
        encoding.encode(values)
    assert caught.value.row == 2


def test_overflow_of_float16_names_its_row_and_the_way_out() -> None:
    values = np.zeros((4, 3), np.float32)
    values[1, 0] = -70000
    with pytest.raises(NotEncodableError, match="70000 does not fit float16; use encoding float32") as caught:
        Float16().encode(values)
    assert caught.value.row == 1


def test_whole_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(NotEncodableError):
        Int32().encode(np.array([0, 2**31]))
