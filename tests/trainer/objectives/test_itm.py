"""Matching: its loss against the formula, its negatives, and a student without fusion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.itm import Itm
from trainer.objectives.loss import Context
from trainer.students.adapters import InputShape, MlpAdapter
from trainer.students.fusion import Fusion
from trainer.students.mlp import MlpStudent

PARTS = ("tokens", "mask")
SHAPES = {"image": InputShape(num_tokens=5, width=6), "text": InputShape(num_tokens=4, width=3)}


def student(fusion: Fusion | None) -> nn.Module:
    torch.manual_seed(0)
    adapters = {name: MlpAdapter(dropout=0.0) for name in SHAPES}
    config = MlpStudent(width=8, embedding_dim=6, num_heads=2, dropout=0.0, adapters=adapters, fusion=fusion)
    return config.build(SHAPES, 0)


def context(of: nn.Module) -> Context:
    return Context(student=of, width=8, embedding_dim=6)


def batch(num_rows: int, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 5, (num_rows,), generator=rng)
    return Batch(
        pair=("image", "text"),
        inputs={
            "image": Tokens(torch.randn(num_rows, 5, 6, generator=rng)),
            "text": Tokens(torch.randn(num_rows, 4, 3, generator=rng), length),
        },
    )


@pytest.mark.parametrize("num_rows", [2, 5])
def test_loss_is_that_of_pairs_fused_one_by_one(num_rows: int) -> None:
    model: Any = student(Fusion(num_heads=2, dropout=0.0)).double()
    objective, of = Itm().build(context(model)), batch(num_rows)
    of = Batch(pair=of.pair, inputs={m: Tokens(t.values.double(), t.length) for m, t in of.inputs.items()})
    forward = Forward(model, of)
    named = dict(forward.main)
    torch.manual_seed(1)
    (found,) = objective(of, forward).values()
    torch.manual_seed(1)
    first, second = named["image/embedding"], named["text/embedding"]
    texts, images = draws(first @ second.T / 0.07), draws(second @ first.T / 0.07)

    def logit(image: int, text: int) -> Tensor:
        sides = [named[f"{m}/{part}"][row, None] for m, row in (("text", text), ("image", image)) for part in PARTS]
        value: Tensor = objective.head(model.fusion(*sides)["pooled"].float()).squeeze()
        return value

    rows = range(num_rows)
    terms = [-logit(i, i).sigmoid().log() for i in rows]
    terms += [-(1 - logit(i, texts[i]).sigmoid()).log() for i in rows]
    terms += [-(1 - logit(images[i], i).sigmoid()).log() for i in rows]
    torch.testing.assert_close(found, torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)


def draws(scores: Tensor) -> list[int]:
    """One column of each row but its own, in proportion to the exponential of its score."""
    shares = scores.exp() * (1 - torch.eye(len(scores)))
    return torch.multinomial(shares / shares.sum(1, keepdim=True), 1).squeeze(1).tolist()


def test_a_negative_is_never_the_own_partner_and_the_nearest_is_the_most_frequent() -> None:
    objective = Itm(temperature=0.2).build(context(student(Fusion(num_heads=2))))
    cosines = torch.tensor([[1.0, 0.5, 0.1], [0.9, 1.0, 0.9], [-1.0, 0.8, 1.0]])
    torch.manual_seed(0)
    found = torch.stack([objective._drawn(cosines) for _ in range(2000)])
    assert not (found == torch.arange(3)).any()
    assert (found[:, 0] == 1).float().mean().item() == pytest.approx(1 / (1 + torch.e ** (-0.4 / 0.2)), abs=0.03)
    assert (found[:, 1] == 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (found[:, 2] == 1).float().mean().item() > 0.99


def test_only_the_student_that_matches_learns_and_the_draw_has_no_gradient() -> None:
    model = student(Fusion(num_heads=2, dropout=0.0))
    objective, of = Itm().build(context(model)), batch(4)
    torch.autograd.backward(list(objective(of, Forward(model, of)).values()))
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("fusion") for name in touched)
    assert any(name.startswith("adapters.by_modality.image") for name in touched)
    assert not any(name.startswith("hidden") for name in touched)  # makes the embedding


@pytest.mark.parametrize("case", ["identical", "zero", "huge"])
def test_no_nan_at_the_edges(case: str) -> None:
    model = student(Fusion(num_heads=2))
    objective, of = Itm().build(context(model)), batch(2)
    for tokens in of.inputs.values():
        if case == "identical":
            tokens.values.copy_(tokens.values[:1].expand_as(tokens.values).clone())
        else:
            tokens.values.mul_(0 if case == "zero" else 1e12)
    with torch.autocast("cpu", torch.bfloat16):
        (loss,) = objective(of, Forward(model, of)).values()
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_student_without_fusion_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective itm fuses pairs: .*student\.fusion"):
        Itm().build(context(student(None)))
