"""How far what is decoded lies from what was encoded."""

from __future__ import annotations

import numpy as np

from contract.encodings.encoding import Array, log_softmax

Figures = dict[str, float]


def vectors(values: Array, decoded: Array) -> Figures:
    """Of float [n, ..., D]: mean 1 - cosine over the vectors, and the RMSE over the values' RMS.

    A vector of zeros has no direction and is left out; one that is decoded to zeros has lost its own, and counts
    as a distance of 1. Values that are not finite (`non_finite`) count as zeros.
    """
    exact, found = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (values, decoded))
    finite = np.isfinite(exact)
    exact[~finite] = found[~finite] = 0
    lengths, found_lengths = np.linalg.norm(exact, axis=1), np.linalg.norm(found, axis=1)
    products = np.einsum("nd,nd->n", exact, found)
    cosines = np.divide(products, lengths * found_lengths, out=np.zeros(len(exact)), where=found_lengths > 0)
    distances = np.clip(1 - cosines, 0, None)[lengths > 0]
    size = float(np.linalg.norm(lengths)) or float(np.sqrt(max(1, exact.size)))
    return {
        "one_minus_cosine": _rounded(_mean(distances)),
        "relative_rmse": _rounded(float(np.linalg.norm(exact - found)) / size),
    }


def distributions(logits: Array, decoded: Array) -> Figures:
    """Of logits float [n, C]: mean KL divergence, in nats, of softmax(decoded) from softmax(logits).

    A class of logit -inf has no probability; a row that is no distribution at all is left out.
    """
    rows = np.isfinite(logits.max(axis=1))
    exact, found = (log_softmax(array[rows].astype(np.float64)) for array in (logits, decoded))
    ratios = np.subtract(exact, found, out=np.zeros_like(exact), where=np.isfinite(exact))
    return {"kl_nats": _rounded(max(0.0, _mean((np.exp(exact) * ratios).sum(axis=1))))}


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


def _rounded(value: float) -> float:
    # Three digits, so that the last bits of a sum do not make two equal stores differ.
    return float(f"{value:.3g}")
