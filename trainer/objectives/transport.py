"""Optimal transport: how to move mass mu [.., n] to nu [.., m] where a unit from i to j costs C_ij, as plans T.

    Sinkhorn: argmin_T <T, C> - e H(T)                     Cuturi 2013 (arXiv 1306.0895)
    IPOT:     T_0 = mu nu^T, T_s+1 = argmin_T <T, C> + e KL(T || T_s), towards argmin_T <T, C>
                                                           Xie et al. 2018 (arXiv 1802.04307)

both over the T with T 1 = mu and T^T 1 = nu. All is done with logarithms: exp(-C / e) alone would be zero in
float32 for a cost of 100 e. The rows are made to have their mass last, so that theirs is exact; the columns' is as
near as the iterations allow. A place without mass takes part in nothing, which is how a mask is said. No gradient
flows through a plan.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(
    cost: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, *, epsilon: float, num_iterations: int
) -> Tensor:
    """The plan, float [.., n, m], of finite costs [.., n, m] for mass [.., n] and [.., m]; None: even mass 1."""
    log_rows, log_columns = _log_masses(cost, rows, columns)
    log_kernel, log_scale = -cost / epsilon, torch.zeros_like(log_rows)
    for _ in range(num_iterations):
        log_plan, log_scale = _scaled(log_kernel, log_scale, log_rows, log_columns)
    return log_plan.exp()


@torch.no_grad()
def ipot(
    cost: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, *, epsilon: float, num_iterations: int
) -> Tensor:
    """As `sinkhorn`, without its blur; a larger `epsilon` takes more iterations, and they are steadier.

    Each minimum over T is approached by a single turn, from the scale of the one before.
    """
    log_rows, log_columns = _log_masses(cost, rows, columns)
    log_plan, log_scale = log_rows + log_columns, torch.zeros_like(log_rows)
    for _ in range(num_iterations):
        log_plan, log_scale = _scaled(log_plan - cost / epsilon, log_scale, log_rows, log_columns)
    return log_plan.exp()


def even(mask: Tensor) -> Tensor:
    """Mass 1 shared evenly by what is real: bool [.., n] -> float32 [.., n]."""
    return mask / mask.sum(-1, keepdim=True)


def _scaled(log_kernel: Tensor, log_scale: Tensor, log_rows: Tensor, log_columns: Tensor) -> tuple[Tensor, Tensor]:
    """One turn: the columns' factors of the rows', the rows' of those; the plan, and the rows' factors."""
    of_columns = _factor(log_columns, log_kernel + log_scale, -2)
    of_rows = _factor(log_rows, log_kernel + of_columns, -1)
    return of_rows + log_kernel + of_columns, of_rows


def _factor(log_mass: Tensor, log_plan: Tensor, dim: int) -> Tensor:
    # Where there is no mass, the plan may have none either: log 0 - log 0.
    return torch.where(log_mass == -torch.inf, log_mass, log_mass - log_plan.logsumexp(dim, keepdim=True))


def _log_masses(cost: Tensor, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of rows [.., n, 1] and columns [.., 1, m]."""
    num_rows, num_columns = cost.shape[-2:]
    rows = cost.new_full((num_rows,), 1 / num_rows) if rows is None else rows.to(cost.dtype)
    columns = cost.new_full((num_columns,), 1 / num_columns) if columns is None else columns.to(cost.dtype)
    return rows.log()[..., :, None], columns.log()[..., None, :]
