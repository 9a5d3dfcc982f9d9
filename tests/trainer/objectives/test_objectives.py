"""Objectives against independent implementations, values and gradients, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.infonce import InfoNce
from trainer.objectives.kd_kl import KdKl
from trainer.objectives.loss import Context
from trainer.objectives.ranking import Ranking

CONFIGS: list[Any] = [
    KdKl(),
    KdKl(temperature=4.0),
    Ranking(),
    Ranking(symmetric=True),
    Ranking(negatives="mean", margin=0.5),
    InfoNce(),
    InfoNce(scale=50.0, learnable=False),
]


CONTEXT = Context(student=nn.Identity(), width=16, embedding_dim=16)


class Fixed(nn.Module):
    """A student whose outputs are given."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.named = named

    def forward(self, inputs: Mapping[str, Tokens]) -> Mapping[str, Tensor]:
        return self.named


def outputs(num_rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    named = {}
    for modality in ("image", "text"):
        named[f"{modality}/embedding"] = F.normalize(torch.randn(num_rows, 16, generator=rng), dim=-1)
        named[f"{modality}/logits"] = 3 * torch.randn(num_rows, 10, generator=rng)
    return {name: tensor.requires_grad_() for name, tensor in named.items()}


def evaluate(config: Any, named: Mapping[str, Tensor], teacher: Tensor) -> dict[str, Tensor]:
    tokens = Tokens(torch.zeros(len(teacher), 1, 1))
    batch = Batch(pair=("image", "text"), inputs={"image": tokens, "text": tokens}, targets={"logits": teacher})
    parts: dict[str, Tensor] = config.build(CONTEXT)(batch, Forward(Fixed(named), batch))
    return parts


def total(config: Any, named: Mapping[str, Tensor], teacher: Tensor) -> Tensor:
    return torch.stack(list(evaluate(config, named, teacher).values())).sum()


def torch_kd(config: KdKl, named: Mapping[str, Tensor], teacher: Tensor) -> Tensor:
    loss = torch.zeros((), dtype=teacher.dtype)
    for modality in ("image", "text"):
        student = F.log_softmax(named[f"{modality}/logits"] / config.temperature, -1)
        target = F.softmax(teacher / config.temperature, -1)
        loss = loss + config.temperature**2 * F.kl_div(student, target, reduction="batchmean") / 2
    return loss


def loop_ranking(config: Ranking, named: Mapping[str, Tensor], teacher: Tensor) -> Tensor:
    image, text = named["image/embedding"], named["text/embedding"]
    num_rows, loss = len(image), torch.zeros((), dtype=image.dtype)
    for i in range(num_rows):
        for j in range(num_rows):
            if j != i:
                loss = loss + (config.margin - image[i] @ text[i] + image[i] @ text[j]).clamp(min=0)
                if config.symmetric:
                    loss = loss + (config.margin - image[i] @ text[i] + image[j] @ text[i]).clamp(min=0)
    return loss / num_rows / (num_rows - 1 if config.negatives == "mean" else 1)


def loop_infonce(config: InfoNce, named: Mapping[str, Tensor], teacher: Tensor) -> Tensor:
    image, text = named["image/embedding"], named["text/embedding"]
    num_rows, loss = len(image), torch.zeros((), dtype=image.dtype)
    for i in range(num_rows):
        for queries, gallery in ((image, text), (text, image)):
            terms = [(config.scale * queries[i] @ gallery[j]).exp() for j in range(num_rows)]
            loss = loss - (terms[i] / torch.stack(terms).sum()).log()
    return loss / (2 * num_rows)


REFERENCES: dict[type, Callable[..., Tensor]] = {
    KdKl: torch_kd,
    Ranking: loop_ranking,
    InfoNce: loop_infonce,
}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("num_rows", [2, 7])
def test_objective_and_its_gradient_equal_a_float64_reference(config: Any, num_rows: int) -> None:
    named = outputs(num_rows)
    teacher = 3 * torch.randn(num_rows, 10, generator=torch.Generator().manual_seed(1))
    double = {name: tensor.detach().double().requires_grad_() for name, tensor in named.items()}
    found = total(config, named, teacher)
    expected = REFERENCES[type(config)](config, double, teacher.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.autograd.backward([found, expected])
    for name, tensor in named.items():
        gradient = double[name].grad
        if gradient is not None:
            torch.testing.assert_close(tensor.grad, gradient.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("case", ["identical", "zero", "huge"])
def test_no_nan_at_the_edges(config: Any, case: str) -> None:
    named = outputs(4)
    teacher = torch.zeros(4, 10)
    with torch.no_grad():
        for name, tensor in named.items():
            if case == "identical":
                tensor.copy_(tensor[:1].expand_as(tensor))
            elif case == "zero":
                tensor.zero_()
            elif name.endswith("logits"):
                tensor.mul_(1e30)
    teacher[:, 0] = 1e30 if case == "huge" else 0
    loss = total(config, named, teacher)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert all(tensor.grad is None or torch.isfinite(tensor.grad).all() for tensor in named.values())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_scores_are_float32_under_autocast(config: Any) -> None:
    named, teacher = outputs(6), torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = total(config, named, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, total(config, named, teacher))


def test_kd_of_a_perfect_student_is_zero_and_the_target_has_no_gradient() -> None:
    named, teacher = outputs(5), torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    teacher.requires_grad_()
    perfect = dict.fromkeys(("image/logits", "text/logits"), teacher.detach().clone().requires_grad_())
    assert total(KdKl(), perfect, teacher).item() == pytest.approx(0, abs=1e-6)
    torch.autograd.backward(total(KdKl(), named, teacher))
    assert teacher.grad is None


def test_ranking_is_zero_once_every_margin_is_kept() -> None:
    named = {f"{modality}/embedding": torch.eye(6) for modality in ("image", "text")}
    assert total(Ranking(symmetric=True, margin=1.0), named, torch.zeros(6, 1)).item() == 0


def test_infonce_scale_is_learnt_and_comes_back_from_its_limit() -> None:
    loss = InfoNce(scale=1e4, max_scale=100.0).build(CONTEXT)
    scale = loss.scale()
    assert scale.item() == pytest.approx(100, rel=1e-5)
    torch.autograd.backward(scale)
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad.item() == pytest.approx(100, rel=1e-5)
    assert loss.log_scale.item() == pytest.approx(math.log(100))


def test_parts_are_named_after_modalities_and_directions() -> None:
    named, teacher = outputs(3), torch.zeros(3, 10)
    assert set(evaluate(KdKl(), named, teacher)) == {"image", "text"}
    assert set(evaluate(Ranking(), named, teacher)) == {"image-to-text"}
    assert set(evaluate(Ranking(symmetric=True), named, teacher)) == {"image-to-text", "text-to-image"}
    assert set(evaluate(InfoNce(), named, teacher)) == {"image-to-text", "text-to-image"}


def test_forward_runs_the_student_once() -> None:
    calls = SimpleNamespace(count=0)

    class Counting(Fixed):
        def forward(self, inputs: Mapping[str, Tokens]) -> Mapping[str, Tensor]:
            calls.count += 1
            return self.named

    named, tokens = outputs(3), Tokens(torch.zeros(3, 1, 1))
    batch = Batch(
        pair=("image", "text"),
        inputs={"image": tokens, "text": tokens},
        targets={"logits": torch.zeros(3, 10)},
    )
    forward = Forward(Counting(named), batch)
    for config in CONFIGS:
        config.build(CONTEXT)(batch, forward)
    assert calls.count == 1
