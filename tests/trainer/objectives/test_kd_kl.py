"""kd_kl on targets that a store keeps as the most probable classes and the mass of the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.encodings import TopK
from contract.store import TargetStore
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.kd_kl import KdKl
from trainer.objectives.loss import Context
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.stored import StoredField

NUM_CLASSES = 20
CONTEXT = Context(student=nn.Identity(), width=4, embedding_dim=4)


class Classifying(nn.Module):
    """A student whose logits are given, the same for each modality."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: dict[str, Tokens]) -> dict[str, Tensor]:
        return {f"{modality}/logits": self.logits for modality in inputs}


def drawn(num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The teacher's logits and the student's, float32 [B, C]."""
    rng = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(num_rows, NUM_CLASSES, generator=rng) for _ in range(2))  # type: ignore[return-value]


def stored(logits: Tensor, k: int) -> dict[str, np.ndarray]:
    return TopK(k=k).encode(logits.numpy(), {})


def decoded(logits: Tensor, k: int) -> Tensor:
    """What a batch has of a store that keeps k classes."""
    arrays = {name: torch.from_numpy(array) for name, array in stored(logits, k).items()}
    found: Tensor = TopK(k=k).decode(arrays, {}, (NUM_CLASSES,), torch)
    return found


def loss(config: KdKl, teacher: Tensor, student: Tensor, pair: tuple[str, ...] = ("image", "text")) -> Tensor:
    tokens = Tokens(torch.zeros(len(teacher), 1, 1))
    batch = Batch(pair=pair, inputs=dict.fromkeys(pair, tokens), targets={"logits": teacher})
    parts = config.build(CONTEXT)(batch, Forward(Classifying(student), batch))
    return torch.stack(list(parts.values())).sum()


def loop(config: KdKl, arrays: dict[str, np.ndarray], student: Tensor) -> Tensor:
    """Straight from what is stored, float64: the k classes, an even share of the tail for each other, p^(1/T)."""
    total, num_classes = torch.zeros((), dtype=torch.float64), student.shape[1]
    for row in range(len(student)):
        k = len(arrays["index"][row])
        log_tail = float(arrays["log_tail"][row])
        log_p = dict.fromkeys(range(num_classes), log_tail - math.log(max(1, num_classes - k)))
        log_p |= {int(c): float(v) for c, v in zip(arrays["index"][row], arrays["log_prob"][row], strict=True)}
        hot = {c: math.exp(value / config.temperature) for c, value in log_p.items()}
        terms = {c: (student[row, c] / config.temperature).exp() for c in range(num_classes)}
        mass = torch.stack(list(terms.values())).sum()
        for c, value in hot.items():
            p = value / sum(hot.values())
            if p:
                total = total + p * (math.log(p) - (terms[c] / mass).log())
    return config.temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 5, NUM_CLASSES])
@pytest.mark.parametrize("num_rows", [2, 7])
def test_kd_of_stored_top_k_and_its_gradient_equal_a_float64_loop(
    temperature: float, k: int, num_rows: int
) -> None:
    teacher, student = drawn(num_rows)
    config, student = KdKl(temperature=temperature), student.requires_grad_()
    double = student.detach().double().requires_grad_()
    found, expected = loss(config, decoded(teacher, k), student), loop(config, stored(teacher, k), double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.autograd.backward([found, expected])
    assert double.grad is not None
    torch.testing.assert_close(student.grad, double.grad.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_of_all_classes_is_that_of_dense_logits(temperature: float) -> None:
    teacher, student = drawn(7)
    config = KdKl(temperature=temperature)
    found, expected = (loss(config, target, student) for target in (decoded(teacher, NUM_CLASSES), teacher))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)  # log-probabilities are kept as float16


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, NUM_CLASSES - 1), temperature=st.floats(1, 20))
def test_heat_gives_the_others_of_top_k_no_less_than_the_teacher_does_and_at_one_the_same(
    seed: int, k: int, temperature: float
) -> None:
    teacher, _ = drawn(3, seed)
    kept = torch.from_numpy(stored(teacher, k)["index"]).long()

    def others(logits: Tensor, temperature: float) -> Tensor:
        shares = (logits.double() / temperature).softmax(-1)
        return 1 - shares.gather(1, kept).sum(1)

    target = decoded(teacher, k)
    torch.testing.assert_close(others(target, 1.0), others(teacher, 1.0), rtol=2e-3, atol=2e-3)
    assert (others(target, temperature) > others(teacher, temperature) - 2e-3).all()


def test_kd_is_finite_where_the_teacher_is_certain() -> None:
    teacher, student = torch.zeros(2, NUM_CLASSES), drawn(2)[1].requires_grad_()
    teacher[:, 3] = 1e30
    for temperature in (0.1, 1.0, 10.0):
        found = loss(KdKl(temperature=temperature), decoded(teacher, 5), student)
        torch.autograd.backward(found)
        assert torch.isfinite(found)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_kd_of_one_modality_has_the_size_of_that_of_two() -> None:
    teacher, student = drawn(4)
    torch.testing.assert_close(loss(KdKl(), teacher, student, ("image",)), loss(KdKl(), teacher, student))


@pytest.mark.parametrize("encoded_store", ["topk"], indirect=True)
def test_kd_of_a_store_of_top_k_is_that_of_the_arrays_in_it(
    recipe: Callable[..., Recipe], encoded_store: TargetStore
) -> None:
    streams = resolve(recipe({"batch_size": 8}), [encoded_store])
    stream, shown = streams.draw(0)
    batch = stream.read(shown).to("cpu")
    field = StoredField(store=encoded_store, reference="image/teacher/logits")
    read = field.read(shown.shown.rows["image"], 0)
    arrays = {name.removeprefix("logits."): array.numpy() for name, array in read.items()}
    student = torch.randn(8, field.shape[0], generator=torch.Generator().manual_seed(0))
    for config in (KdKl(), KdKl(temperature=3.0)):
        expected = loop(config, arrays, student.double())
        found = loss(config, batch.targets["logits"], student)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
