import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from contract.encodings import Int8, NotEncodableError, fidelity
from contract.encodings.encoding import BLOCK_VALUES

INT8 = Int8()
TINY = np.finfo(np.float32).tiny


def there_and_back(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    constants = {"scale": scale}
    return INT8.decode(INT8.encode(values, constants), constants, values.shape[1:], np)


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_the_scale_is_the_largest_magnitude_of_each_channel_over_127(shape: tuple[int, ...]) -> None:
    sample = features(50, *shape)
    scale = INT8.calibrate(sample)["scale"]
    assert scale.dtype == np.float32
    expected = [max(abs(float(v)) for v in sample[..., channel].flat) / 127 for channel in range(6)]
    np.testing.assert_allclose(scale, expected, rtol=1e-7)


@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 4)),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    )
)
def test_the_error_is_at_most_half_a_step_within_what_was_calibrated(values: np.ndarray) -> None:
    scale = INT8.calibrate(values)["scale"]
    error = np.abs(values.astype(np.float64) - there_and_back(values, scale))
    assert (error <= scale.astype(np.float64) * 0.50001).all()


@pytest.mark.parametrize("shape", [(300,), (5, 300)])
def test_steps_are_rounded_as_a_slow_loop_does(shape: tuple[int, ...]) -> None:
    values = features(BLOCK_VALUES // 1000, *shape)  # several blocks
    scale = INT8.calibrate(values[:20])["scale"]
    exact = values.astype(np.float64) / scale
    stored = INT8.encode(values, {"scale": scale})[""]
    far_from_half = np.abs(np.abs(exact) % 1 - 0.5) > 1e-4
    np.testing.assert_array_equal(stored[far_from_half], np.clip(np.round(exact), -127, 127)[far_from_half])
    assert stored.min() == -127


def test_exactly_what_rounds_beyond_127_steps_is_counted_as_clipped() -> None:
    scale = np.array([1, 0.5], np.float32)
    values = np.float32([[127, 63.5], [127.49, 63.7], [127.5, -63.75], [-128, 1e38], [0, -63.74]])
    assert INT8.num_clipped(values, {"scale": scale}) == 4
    np.testing.assert_array_equal(there_and_back(values, scale)[2:4], [[127, -63.5], [-127, 63.5]])


@given(
    st_numpy.arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32)),
    st_numpy.arrays(np.float32, (3,), elements=st.floats(0.125, 64, width=32)),
)
def test_the_count_is_of_the_values_that_encoding_moves_inside(values: np.ndarray, scale: np.ndarray) -> None:
    moved = sum(
        abs(round(float(np.float32(value) / np.float32(s)))) > 127
        for row in values
        for value, s in zip(row, scale, strict=True)
    )
    assert INT8.num_clipped(values, {"scale": scale}) == moved


def test_a_channel_that_is_always_zero_is_stored_as_zeros() -> None:
    values = features(20, 3)
    values[:, 1] = 0
    scale = INT8.calibrate(values)["scale"]
    assert (there_and_back(values, scale)[:, 1] == 0).all()
    assert INT8.num_clipped(values, {"scale": scale}) == 0


@pytest.mark.parametrize("value", [1e-30, 0.3, -3e38])
def test_what_a_channel_gains_that_was_zero_in_the_sample_is_counted(value: float) -> None:
    sample = features(20, 3)
    sample[:, 1] = 0
    scale = INT8.calibrate(sample)["scale"]
    values = sample.copy()
    values[5, 1] = value
    assert INT8.num_clipped(values, {"scale": scale}) == 1
    assert abs(there_and_back(values, scale)[5, 1]) <= 128 * TINY


def test_an_outlier_channel_costs_the_others_nothing() -> None:
    plain, loud = features(100, 8), features(100, 8)
    loud[:, 0] *= 100
    decoded = [there_and_back(values, INT8.calibrate(values)["scale"]) for values in (plain, loud)]
    np.testing.assert_array_equal(decoded[0][:, 1:], decoded[1][:, 1:])


def test_gaussian_features_keep_their_direction() -> None:
    # 4e-5 was measured (docs/store.md). It takes some 3,000 vectors to meet each channel's tail: clipping alone
    # costs 1e-4 with 800 and 2e-3 with 50.
    values = features(64, 197, 96)
    decoded = there_and_back(values, INT8.calibrate(values[:32])["scale"])
    assert 4e-5 < fidelity.vectors(values, decoded)["one_minus_cosine"] < 6e-5


def test_a_sample_that_is_not_finite_is_refused() -> None:
    sample = features(4, 3)
    sample[2, 1] = np.inf
    with pytest.raises(NotEncodableError) as caught:
        INT8.calibrate(sample)
    assert caught.value.row == 2
