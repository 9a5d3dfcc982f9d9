"""The teacher's most probable classes, and the mass of all others: 4 k + 2 bytes instead of 2 a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from contract.encodings.encoding import Array, ArrayEncoding, Layout, Shape, cast, log_softmax, require_finite

# exp(-30,000) is nothing, and -30,000 is a float16: what stands for the logarithm of no mass at all.
LOG_NOTHING = -30000.0


@dataclass(frozen=True, kw_only=True)
class TopK(ArrayEncoding):
    """Log-probabilities of the k most probable classes, and the logarithm of the tail's mass.

    From logits g: log p = log_softmax(g) in float64; stored are the k largest of it with their classes, and
    log(sum of p over the others), taken over the others themselves and never as 1 - sum, which float16 makes
    negative for a confident teacher. Decoding gives logits [C], up to a constant: log p for the k, the tail spread
    evenly over the other C - k, renormalised in log space, so that softmax of them is a distribution for any
    temperature.
    With k >= C every class is kept.
    """

    kind: Literal["topk"] = "topk"
    k: Annotated[int, Field(ge=1)] = 32

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """`index` [k], `log_prob` float16 [k], `log_tail` float16."""
        (num_classes,) = shape
        k = min(self.k, num_classes)
        index = "int16" if num_classes <= np.iinfo(np.int16).max + 1 else "int32"
        return {"index": (index, (k,)), "log_prob": ("float16", (k,)), "log_tail": ("float16", ())}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Logits float [n, C] -> the three arrays, classes by falling probability, ties by number."""
        require_finite(values)
        stored = self.stored(values.shape[1:])
        (k,) = stored["index"][1]
        index = _most_probable(values, k)
        log_probs = log_softmax(values.astype(np.float64))
        kept = np.take_along_axis(log_probs, index, axis=1)
        np.put_along_axis(log_probs, index, -np.inf, axis=1)
        return {
            "index": index.astype(stored["index"][0]),
            "log_prob": np.maximum(kept, LOG_NOTHING).astype(np.float16),
            "log_tail": _log_sum_exp(log_probs).astype(np.float16),
        }

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """The three arrays -> log-probabilities float32 [n, C]."""
        (num_classes,) = shape
        index = cast(stored["index"], "int64", xp)
        log_prob = cast(stored["log_prob"], "float32", xp)
        log_tail = cast(stored["log_tail"], "float32", xp)[:, None]
        log_num_others = float(np.log(max(1, num_classes - index.shape[1])))
        # What float16 rounds may not make a class of the tail more probable than one of the k.
        other = xp.minimum(log_tail - log_num_others, log_prob[:, -1:])
        log_tail = other + log_num_others
        largest = xp.maximum(log_prob[:, :1], log_tail)
        mass = xp.exp(log_prob - largest).sum(1)[:, None] + xp.exp(log_tail - largest)
        log_mass = largest + xp.log(mass)
        if xp is np:
            decoded = np.repeat(other - log_mass, num_classes, axis=1)
            np.put_along_axis(decoded, index, log_prob - log_mass, axis=1)
            return decoded
        return (other - log_mass).repeat(1, num_classes).scatter_(1, index, log_prob - log_mass)


def _most_probable(logits: Array, k: int) -> npt.NDArray[np.int64]:
    """The k largest of each row of [n, C], falling, ties by number: int64 [n, k].

    Sorting only what reaches the k-th largest takes a twentieth of the time for 21,841 classes.
    """
    least = np.partition(logits, -k, axis=1)[:, -k]
    index = np.empty((len(logits), k), np.int64)
    for row, (values, bound) in enumerate(zip(logits, least, strict=True)):
        candidates = np.flatnonzero(values >= bound)
        index[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return index


def _log_sum_exp(values: Array) -> Array:
    """Of [n, C], over the classes: [n], no less than `LOG_NOTHING`."""
    largest = np.maximum(values.max(axis=1), LOG_NOTHING)
    with np.errstate(divide="ignore"):  # no class left: the logarithm of nothing
        result: Array = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
    return np.maximum(result, LOG_NOTHING)
