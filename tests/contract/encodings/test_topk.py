import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from contract.encodings import TopK, fidelity

NUM_CLASSES = 100


def teacher(num_rows: int, num_classes: int = NUM_CLASSES, *, scale: float = 4.0, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=(num_rows, num_classes))).astype(np.float32)


def decode(stored: dict[str, np.ndarray], num_classes: int) -> np.ndarray:
    return TopK().decode(stored, {}, (num_classes,), np)


def there_and_back(logits: np.ndarray, k: int) -> np.ndarray:
    return decode(TopK(k=k).encode(logits, {}), logits.shape[1])


def softmax(logits: np.ndarray, temperature: float = 1) -> np.ndarray:
    return torch.from_numpy(logits).double().div(temperature).softmax(-1).numpy()


def log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def slowly(logits: np.ndarray, k: int) -> tuple[list[int], list[float], float, list[float]]:
    """One row by the formula, in exact sums: classes, their log p, the tail's log mass, log p as decoded."""
    values = [float(value) for value in logits]
    classes = sorted(range(len(values)), key=lambda c: (-values[c], c))
    log_p = [value - log_sum_exp(values) for value in values]
    kept, others = classes[:k], classes[k:]
    log_tail = log_sum_exp([log_p[c] for c in others]) if others else -30000.0
    decoded = [log_tail - math.log(max(1, len(others)))] * len(values)
    for c in kept:
        decoded[c] = log_p[c]
    log_mass = log_sum_exp(decoded)
    return kept, [log_p[c] for c in kept], log_tail, [value - log_mass for value in decoded]


@pytest.mark.parametrize("scale", [0.1, 4, 30])
@pytest.mark.parametrize("k", [1, 10, NUM_CLASSES - 1, NUM_CLASSES, 10 * NUM_CLASSES])
def test_what_is_stored_is_the_formula_in_float16(k: int, scale: float) -> None:
    logits = teacher(20, scale=scale)
    stored = TopK(k=k).encode(logits, {})
    for row, values in enumerate(logits):
        classes, log_probs, log_tail, _ = slowly(values, k)
        assert stored["index"][row].tolist() == classes
        np.testing.assert_array_equal(stored["log_prob"][row], np.float16(log_probs))
        assert stored["log_tail"][row] == np.float16(log_tail)


@pytest.mark.parametrize("scale", [0.1, 4, 30])
@pytest.mark.parametrize("k", [1, 10, NUM_CLASSES - 1, NUM_CLASSES, 10 * NUM_CLASSES])
def test_what_is_decoded_is_the_formula_to_the_precision_of_float16(k: int, scale: float) -> None:
    logits = teacher(20, scale=scale)
    decoded = there_and_back(logits, k)
    for row, values in enumerate(logits):
        *_, expected = slowly(values, k)
        # Rounding moves each logarithm by 2^-11 of itself, and with them the mass by which all are divided.
        np.testing.assert_allclose(decoded[row], expected, rtol=2**-11, atol=3e-3)


@pytest.mark.parametrize("temperature", [1, 4])
@pytest.mark.parametrize("scale", [0, 0.1, 4, 30, 1000])
@pytest.mark.parametrize("k", [1, 10, NUM_CLASSES - 1, NUM_CLASSES])
def test_what_is_decoded_is_a_distribution_at_every_temperature(k: int, scale: float, temperature: float) -> None:
    decoded = there_and_back(teacher(20, scale=scale), k)
    np.testing.assert_allclose(np.exp(decoded, dtype=np.float64).sum(axis=1), 1, atol=1e-5)
    probabilities = softmax(decoded, temperature)
    assert np.isfinite(decoded).all()
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)


@pytest.mark.parametrize("temperature", [1, 4])
@pytest.mark.parametrize("k", [NUM_CLASSES, 2 * NUM_CLASSES])
def test_with_every_class_kept_the_teacher_can_be_softened_later(k: int, temperature: float) -> None:
    logits = teacher(50)
    np.testing.assert_allclose(
        softmax(there_and_back(logits, k), temperature), softmax(logits, temperature), atol=1e-3
    )


@pytest.mark.parametrize("k", [1, 10, 99])
def test_with_one_class_less_than_all_the_tail_is_that_class(k: int) -> None:
    logits = teacher(50, k + 1)
    np.testing.assert_allclose(softmax(there_and_back(logits, k)), softmax(logits), atol=1e-3)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_mass_of_the_tail_is_spread_evenly(k: int) -> None:
    logits = teacher(20)
    exact, found = softmax(logits), softmax(there_and_back(logits, k))
    for row in range(len(logits)):
        others = np.argsort(-exact[row], kind="stable")[k:]
        assert np.ptp(found[row, others]) < 1e-12
        assert found[row, others].sum() == pytest.approx(exact[row, others].sum(), rel=5e-3)


@pytest.mark.parametrize("scale", [1, 4, 12])
def test_the_more_classes_are_kept_the_nearer_the_teacher(scale: float) -> None:
    logits = teacher(64, 1000, scale=scale)
    errors = [
        fidelity.distributions(logits, there_and_back(logits, k))["kl_nats"] for k in (1, 3, 10, 32, 100, 1000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("k", [1, 10, 32])
@pytest.mark.parametrize("gap", [30, 300, 1e4, 1e5, 3e38])
def test_an_extremely_confident_teacher_stays_so(gap: float, k: int) -> None:
    logits = np.abs(teacher(10, scale=0.1)) * -1
    logits[:, 7] = gap
    decoded = there_and_back(logits, k)
    assert np.isfinite(decoded).all()
    assert (decoded.argmax(axis=1) == 7).all()
    np.testing.assert_allclose(softmax(decoded)[:, 7], 1, atol=1e-9)


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("top", [0.9, 0.999, 0.99999])
def test_a_confident_distribution_is_not_flattened(top: float, k: int) -> None:
    # Softmax over stored probabilities, the fallback of one peer, makes [0.232, 0.085, ...] of [0.999, ...].
    exact = np.full((1, 1000), (1 - top) / 999)
    exact[0, 3] = top
    found = softmax(there_and_back(np.log(exact).astype(np.float32), k))
    np.testing.assert_allclose(found, exact, rtol=5e-3)


@pytest.mark.parametrize("k", [10, 100])
@pytest.mark.parametrize("scale", [6, 12])
def test_the_tail_is_never_negative_nor_lost_for_confident_teachers(scale: float, k: int) -> None:
    # 1 - sum of float16 probabilities is negative in up to half of such rows.
    logits = teacher(200, 1000, scale=scale)
    exact, found = softmax(logits), softmax(there_and_back(logits, k))
    kept = TopK(k=k).encode(logits, {})["index"]
    for array in (exact, found):
        np.put_along_axis(array, kept.astype(np.int64), 0, axis=1)
    np.testing.assert_allclose(found.sum(axis=1), exact.sum(axis=1), rtol=2e-2)


@pytest.mark.parametrize("num_classes", [2, 10, 1000, 21_841])
@pytest.mark.parametrize("k", [1, 10, 32])
def test_equal_logits_are_a_uniform_distribution(num_classes: int, k: int) -> None:
    decoded = there_and_back(np.full((1, num_classes), 3.7, np.float32), k)
    np.testing.assert_allclose(softmax(decoded), 1 / num_classes, rtol=1e-2)


@settings(max_examples=300)
@given(
    st_numpy.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-50, 50, width=32)
    ),
    st.integers(1, 50),
)
def test_no_class_becomes_more_probable_than_one_that_was_before_it(logits: np.ndarray, k: int) -> None:
    decoded = there_and_back(logits, k)
    for before, after in zip(logits, decoded, strict=True):
        ranked = np.argsort(-before, kind="stable")[: min(k, len(before))]
        assert (np.diff(after[ranked]) <= 0).all()
        assert after[ranked[-1]] >= np.delete(after, ranked[:-1]).max()


@pytest.mark.parametrize("num_classes", [2, 7, 100, 999, 1000, 1001, 21_841])
def test_the_most_probable_class_is_kept_even_if_barely_so(num_classes: int) -> None:
    # In float16 the tail's share of each class may round to more than what is stored of the first.
    decoded = there_and_back(np.zeros((1, num_classes), np.float32), 1)
    assert decoded.argmax() == 0


def test_ties_are_kept_by_the_number_of_the_class() -> None:
    logits = np.float32([[1, 5, 1, 5, 1, 1], [2, 2, 2, 2, 2, 2], [0, -0.0, -1, 7, 0, -0.0]])
    assert TopK(k=4).encode(logits, {})["index"].tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [3, 0, 1, 4]]


@settings(max_examples=300)
@given(
    st_numpy.arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(1, 30)), elements=st.integers(-3, 3)),
    st.integers(1, 40),
)
def test_classes_are_ordered_as_a_stable_sort_orders_them(logits: np.ndarray, k: int) -> None:
    index = TopK(k=k).encode(logits, {})["index"]
    assert index.tolist() == np.argsort(-logits, axis=1, kind="stable")[:, :k].tolist()


@pytest.mark.parametrize(("num_classes", "dtype"), [(32_768, "int16"), (32_769, "int32")])
def test_the_last_class_is_told_whatever_their_number(num_classes: int, dtype: str) -> None:
    logits = np.zeros((2, num_classes), np.float32)
    logits[:, -1] = 30
    stored = TopK(k=3).encode(logits, {})
    assert stored["index"].dtype == dtype
    assert TopK(k=3).stored((num_classes,))["index"][0] == dtype
    assert stored["index"].tolist() == [[num_classes - 1, 0, 1]] * 2
    assert decode(stored, num_classes).argmax(axis=1).tolist() == [num_classes - 1] * 2


@pytest.mark.parametrize(("k", "size_bytes"), [(10, 42), (32, 130), (100, 402)])
def test_a_row_takes_four_bytes_a_class_and_two(k: int, size_bytes: int) -> None:
    assert sum(array.nbytes for array in TopK(k=k).encode(teacher(1, 1000), {}).values()) == size_bytes
