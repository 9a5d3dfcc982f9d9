"""Transport plans against POT's, and what any plan must keep to."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.objectives.transport import even, ipot, sinkhorn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the escapes in its docstrings, when Python compiles them
    import ot

Plan = Callable[..., Tensor]


def masses(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    return drawn / drawn.sum(-1, keepdim=True)


def costs(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(100 + seed))


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_is_that_of_pot(epsilon: float) -> None:
    cost, rows, columns = costs(7, 9), masses(7), masses(9, seed=1)
    found = sinkhorn(cost, rows, columns, epsilon=epsilon, num_iterations=1000)
    double = [tensor.double().numpy() for tensor in (rows, columns, cost)]
    expected = ot.sinkhorn(*double, epsilon, method="sinkhorn_log", numItermax=10000, stopThr=1e-12, warn=False)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_ipot_finds_the_cheapest_plan(epsilon: float) -> None:
    cost, rows, columns = costs(7, 9).double(), masses(7).double(), masses(9, seed=1).double()
    found = ipot(cost, rows, columns, epsilon=epsilon, num_iterations=3000)
    expected = ot.emd(rows.numpy() / rows.sum().item(), columns.numpy() / columns.sum().item(), cost.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_ipot_is_the_algorithm_of_its_paper_as_it_is_written() -> None:
    cost, rows, columns = (tensor.double().numpy() for tensor in (costs(5, 6), masses(5), masses(6, seed=1)))
    plan, kernel, scale = np.outer(rows, columns), np.exp(-cost / 0.5), np.ones((5, 1))
    for _ in range(40):
        step = kernel * plan
        of_columns = columns / (scale * step).sum(0)
        scale = (rows / (step * of_columns).sum(1))[:, None]
        plan = scale * step * of_columns
    found = ipot(*(torch.from_numpy(array) for array in (cost, rows, columns)), epsilon=0.5, num_iterations=40)
    np.testing.assert_allclose(found.numpy(), plan, rtol=1e-9)


@pytest.mark.parametrize("plan", [sinkhorn, ipot])
@given(num_rows=st.integers(1, 6), num_columns=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rows_have_their_mass_and_columns_nearly(plan: Plan, num_rows: int, num_columns: int, seed: int) -> None:
    cost = costs(num_rows, num_columns, seed=seed)
    rows, columns = masses(num_rows, seed=seed), masses(num_columns, seed=seed + 1)
    found = plan(cost, rows, columns, epsilon=0.5, num_iterations=300)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), rows, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(0), columns, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("plan", [sinkhorn, ipot])
def test_mass_is_even_unless_it_is_given(plan: Plan) -> None:
    cost = costs(4, 6)
    given_masses = torch.full((4,), 1 / 4), torch.full((6,), 1 / 6)
    found = plan(cost, epsilon=0.1, num_iterations=50)
    assert torch.equal(found, plan(cost, *given_masses, epsilon=0.1, num_iterations=50))


@pytest.mark.parametrize("plan", [sinkhorn, ipot])
def test_a_batch_of_costs_is_each_of_them_and_what_is_masked_takes_no_part(plan: Plan) -> None:
    real_rows, real_columns = torch.tensor([3, 5, 1]), torch.tensor([6, 2, 4])
    cost = costs(3, 5, 6)
    rows, columns = (even(torch.arange(size) < real[:, None]) for size, real in ((5, real_rows), (6, real_columns)))
    found = plan(cost, rows, columns, epsilon=0.2, num_iterations=100)
    for one, (n, m) in enumerate(zip(real_rows, real_columns, strict=True)):
        alone = plan(cost[one, :n, :m], epsilon=0.2, num_iterations=100)
        torch.testing.assert_close(found[one, :n, :m], alone)
        assert found[one].sum().item() == pytest.approx(1, abs=1e-5)
        assert found[one, n:].sum() == 0
        assert found[one, :, m:].sum() == 0


@pytest.mark.parametrize("plan", [sinkhorn, ipot])
def test_plan_follows_a_permutation_of_the_rows(plan: Plan) -> None:
    cost, rows, order = costs(6, 4), masses(6), torch.tensor([3, 0, 5, 1, 4, 2])
    found = plan(cost, rows, epsilon=0.1, num_iterations=50)
    torch.testing.assert_close(plan(cost[order], rows[order], epsilon=0.1, num_iterations=50), found[order])


@pytest.mark.parametrize("plan", [sinkhorn, ipot])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_costs_that_are_equal_or_huge_give_a_plan(plan: Plan, scale: float) -> None:
    found = plan(scale * costs(5, 7), epsilon=0.05, num_iterations=50)
    assert torch.isfinite(found).all()
    # A logarithm of 200,000 has two digits left behind the point.
    torch.testing.assert_close(found.sum(1), torch.full((5,), 1 / 5), rtol=0.1, atol=0)


@pytest.mark.parametrize("plan", [sinkhorn, ipot])
def test_no_gradient_flows_through_a_plan(plan: Plan) -> None:
    assert not plan(costs(3, 4).requires_grad_(), epsilon=0.1, num_iterations=5).requires_grad
