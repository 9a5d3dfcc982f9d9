"""An encoder for whose batches there is no room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from contract.errors import DataError
from pipeline.decoding import Decoded
from pipeline.forward import Forward, is_out_of_memory


class Limited:
    """Doubles what it is shown, of at most `limit` views at a time."""

    def __init__(self, limit: int, error: Callable[[], BaseException] = MemoryError) -> None:
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def __call__(self, views: Sequence[Any]) -> dict[str, Any]:
        self.sizes.append(len(views))
        if len(views) > self.limit:
            raise self.error()
        values = np.array(views, np.float32)
        return {"doubled": 2 * values, "square": np.stack([values, values**2], axis=1)}

    def constants(self) -> dict[str, Any]:
        return {}


def out_of_cuda_memory() -> BaseException:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("error", [MemoryError, out_of_cuda_memory], ids=["cpu", "cuda"])
def test_values_are_equal_whatever_the_batch_is_halved_to(limit: int, error: Callable[[], BaseException]) -> None:
    views = list(range(13))
    found = Forward(lambda: Limited(limit, error), "image/teacher").of(views)
    for name, values in Limited(13)(views).items():
        np.testing.assert_array_equal(found[name], values)


def test_the_batch_stays_halved_and_that_is_said_once() -> None:
    model = Limited(5)
    forward = Forward(lambda: model, "image/teacher")
    forward.of(range(16))
    assert model.sizes == [16, 8, 4, 4, 4, 4]
    assert forward.halved_to == 4
    assert forward.take_notes() == (
        "image/teacher: memory ran out on 16 views; from here on 4 at a time go through the encoder",
    )
    forward.of(range(16))
    forward.of(range(3))
    assert model.sizes[6:] == [4, 4, 4, 4, 3]
    assert forward.take_notes() == ()


def test_memory_that_becomes_less_halves_it_again() -> None:
    model = Limited(4)
    forward = Forward(lambda: model, "image/teacher")
    forward.of(range(8))
    model.limit = 1
    assert forward.of(range(8))["doubled"].tolist() == [2 * n for n in range(8)]
    assert forward.halved_to == 1
    assert len(forward.take_notes()) == 2


def test_a_single_view_that_does_not_fit_is_one_line() -> None:
    forward = Forward(lambda: Limited(0), "image/teacher")
    with pytest.raises(DataError, match=r"^image/teacher: memory ran out on a single view; choose a smaller model"):
        forward.of(range(8))


def test_other_errors_of_a_model_go_through() -> None:
    model = Limited(0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Forward(lambda: model, "image/teacher").of(range(8))
    assert model.sizes == [8]


def test_out_of_memory_is_recognised_however_it_is_said() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 55)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 55)
    said = [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ]
    for error in (of_torch.value, of_numpy.value, out_of_cuda_memory(), *map(RuntimeError, said)):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_model_that_was_let_go_of_is_loaded_when_it_is_needed() -> None:
    loaded = []
    forward = Forward(lambda: loaded.append(1) or Limited(9), "image/teacher")
    forward.of(range(3))
    forward.release()
    assert len(loaded) == 1
    assert forward.of([7])["doubled"].tolist() == [14]
    assert len(loaded) == 2


def test_a_batch_of_which_nothing_could_be_decoded_does_not_reach_the_model() -> None:
    model = Limited(9)
    empty = Decoded(
        num_rows=3, good=[], views=[], parameters=np.empty((0, 0)), quarantined=[], reading_s=0, decoding_s=0
    )
    assert Forward(lambda: model, "image/teacher")(empty) == {}
    assert model.sizes == []
