"""Where the float32 products of a ranking are made: on the first GPU that FAISS has, or with BLAS.

A product on a GPU adds in another order; the ranks are the same, since what float32 can't order is scored exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import MissingExtraError
from contract.ranking import Matmul, Product
from eval.indexes.library import library, reason, resources

Single = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """Inner products by FAISS; `resources` are its memory on the GPU, which one thread may use at a time."""

    resources: Any
    tile: tuple[int, int] = (1024, 16384)
    lock: Lock = field(default_factory=Lock)

    def __call__(self, left: Single, right: Single, out: Single) -> None:
        """See `Product`."""
        import faiss

        with self.lock:
            faiss.pairwise_distance_gpu(self.resources, left, right, D=out, metric=faiss.METRIC_INNER_PRODUCT)


def best(say: Callable[[str], None]) -> Product:
    """The quickest product of this machine that is as exact as float32 is; `say` is told of a GPU that is not."""
    try:
        if library().get_num_gpus() == 0:
            return Matmul()
        product = OnGpu(resources=resources())
        if is_float32(product):
            return product
        say("note: the GPU rounds products to less than float32 (is NVIDIA_TF32_OVERRIDE set?); the CPU makes them")
    except MissingExtraError as error:
        say(f"note: {error}; the CPU makes the products")
    except RuntimeError as error:  # its memory is taken by another program, for one
        say(f"note: the GPU can't be used: {reason(error)}; the CPU makes the products")
    return Matmul()


def is_float32(product: Product) -> bool:
    """Whether a product is within float32's error of the true one, and not within TF32's alone."""
    vectors = np.random.default_rng(0).standard_normal((256, 64))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    out = np.empty((len(unit), len(unit)), np.float32)
    product(unit, unit, out)
    exact = unit.astype(np.float64) @ unit.T.astype(np.float64)
    return bool(np.abs(out - exact).max() <= (unit.shape[1] + 1) * 2.0**-24)
