import numpy as np
import pytest
import torch
from torch.nn import functional

from contract.encodings import fidelity

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(20, 8), (20, 5, 8)])
@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_vectors_are_compared_as_torch_does(shape: tuple[int, ...], noise: float) -> None:
    values = RNG.normal(size=shape).astype(np.float32)
    decoded = (values + noise * RNG.normal(size=shape)).astype(np.float32)
    exact, found = torch.from_numpy(values).double(), torch.from_numpy(decoded).double()
    figures = fidelity.vectors(values, decoded)
    cosine = functional.cosine_similarity(exact, found, dim=-1).mean().item()
    assert figures["one_minus_cosine"] == pytest.approx(1 - cosine, rel=6e-3)
    relative = (functional.mse_loss(found, exact) / exact.square().mean()).sqrt().item()
    assert figures["relative_rmse"] == pytest.approx(relative, rel=6e-3)


@pytest.mark.parametrize("scale", [1, 20])
def test_distributions_are_compared_as_torch_does(scale: float) -> None:
    logits, decoded = (scale * RNG.normal(size=(30, 50)).astype(np.float32) for _ in range(2))
    exact, found = (torch.from_numpy(array).double().log_softmax(-1) for array in (logits, decoded))
    divergence = functional.kl_div(found, exact, log_target=True, reduction="batchmean").item()
    assert fidelity.distributions(logits, decoded) == {"kl_nats": pytest.approx(divergence, rel=6e-3)}


def test_what_is_equal_has_no_error() -> None:
    values = RNG.normal(size=(4, 3, 7)).astype(np.float32)
    assert fidelity.vectors(values, values) == {"one_minus_cosine": pytest.approx(0, abs=1e-15), "relative_rmse": 0}
    assert fidelity.distributions(values[:, 0], values[:, 0]) == {"kl_nats": 0}


def test_a_constant_added_to_logits_changes_no_distribution() -> None:
    logits = RNG.normal(size=(4, 7)).astype(np.float32)
    assert fidelity.distributions(logits, logits.astype(np.float64) + 3)["kl_nats"] < 1e-12


def test_vectors_of_zeros_have_no_direction_and_are_left_out() -> None:
    values = np.array([[0, 0], [3, 4]], np.float32)
    assert fidelity.vectors(values, values)["one_minus_cosine"] < 1e-15
    assert fidelity.vectors(values[:1], values[:1]) == {"one_minus_cosine": 0, "relative_rmse": 0}


def test_a_vector_that_is_lost_counts_as_a_distance_of_one() -> None:
    values = np.array([[1e-3, 0], [3, 4]], np.float32)
    decoded = np.array([[0, 0], [3, 4]], np.float32)
    assert fidelity.vectors(values, decoded)["one_minus_cosine"] == 0.5


def test_no_rows_have_no_error() -> None:
    assert fidelity.vectors(np.zeros((0, 3, 4)), np.zeros((0, 3, 4))) == {
        "one_minus_cosine": 0,
        "relative_rmse": 0,
    }
    assert fidelity.distributions(np.zeros((0, 4)), np.zeros((0, 4))) == {"kl_nats": 0}


def test_values_that_are_not_finite_are_left_out_of_vectors() -> None:
    values = np.array([[3, 4, np.nan], [1, -np.inf, 2]], np.float32)
    decoded = values + np.float32([[0, 1, 0], [0, 0, 0]])
    assert fidelity.vectors(values, decoded) == fidelity.vectors(
        np.nan_to_num(values, posinf=0, neginf=0), np.nan_to_num(decoded, posinf=0, neginf=0)
    )


def test_a_masked_class_has_no_part_in_the_divergence() -> None:
    logits, decoded = (RNG.normal(size=(5, 6)).astype(np.float32) for _ in range(2))
    masked, masked_decoded = (np.insert(array, 2, -np.inf, axis=1) for array in (logits, decoded))
    assert fidelity.distributions(masked, masked_decoded) == fidelity.distributions(logits, decoded)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_distribution_is_left_out(bad: float) -> None:
    logits, decoded = (RNG.normal(size=(5, 6)).astype(np.float32) for _ in range(2))
    for array in (logits, decoded):
        array[3, 2] = bad
    kept = [0, 1, 2, 4]
    assert fidelity.distributions(logits, decoded) == fidelity.distributions(logits[kept], decoded[kept])


@pytest.mark.parametrize("value", [1e30, 1e-30])
def test_figures_hold_for_any_magnitude(value: float) -> None:
    values = np.full((3, 4), value, np.float32)
    figures = fidelity.vectors(values, values * np.float32(1.5))
    assert figures == {"one_minus_cosine": pytest.approx(0, abs=1e-15), "relative_rmse": 0.5}
