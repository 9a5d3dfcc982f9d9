from __future__ import annotations

import sys

import faiss
import numpy as np
import pytest

from contract.ranking import Matmul, rank_both
from eval import products


def say(line: str) -> None:
    raise AssertionError(line)


class Rounded(Matmul):
    """A product of what is left of float32 after eleven bits."""

    def __call__(self, left, right, out):
        super().__call__(left.astype(np.float16).astype(np.float32), right, out)


def test_blas_is_as_exact_as_float32_is():
    assert products.is_float32(Matmul())


def test_a_product_that_is_rounded_further_is_noticed():
    assert not products.is_float32(Rounded())


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU")
def test_without_a_gpu_blas_makes_the_product():
    assert products.best(say) == Matmul()


def test_a_gpu_that_can_not_be_used_is_left_and_said(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Error in void alloc() at /faiss/gpu/Resources.cpp:1: Error: 'ok' failed: out of memory")

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(products, "resources", lambda: None)
    monkeypatch.setattr(faiss, "pairwise_distance_gpu", refuse, raising=False)
    said: list[str] = []
    assert products.best(said.append) == Matmul()
    assert said == ["note: the GPU can't be used: out of memory; the CPU makes the products"]


def test_without_faiss_blas_makes_the_product(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    said: list[str] = []
    assert products.best(said.append) == Matmul()
    assert said[0].startswith("note: FAISS can't be imported: ")


@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="no GPU that FAISS can use")
def test_a_gpu_makes_the_same_ranks():
    product = products.best(say)
    assert isinstance(product, products.OnGpu)
    rng = np.random.default_rng(0)
    # Nearly tied: a few vectors many times over, a float32's last digit apart.
    gallery = rng.standard_normal((20, 128))[rng.integers(0, 20, 3000)] * (
        1 + 2.0**-23 * rng.integers(-1, 2, (3000, 128))
    )
    queries, ids = rng.standard_normal((700, 128)), np.arange(3000).astype(str)
    pairs = np.stack([np.arange(3000) % 700, np.arange(3000)], axis=1)
    on_gpu, on_cpu = (
        rank_both(queries, gallery, pairs, ids[:700], ids, product=one) for one in (product, Matmul())
    )
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert (one.ranks == other.ranks).all()
        assert (one.positives.ranks == other.positives.ranks).all()
