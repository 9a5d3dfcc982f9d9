"""Regression of all timesteps: values and gradients against the formula, padding, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.loss import Context
from trainer.objectives.regression import Regression

LOSSES: list[dict[str, Any]] = [
    {"loss": "mse"},
    {"loss": "smooth_l1", "beta": 1.0},
    {"loss": "smooth_l1", "beta": 0.3},
    {"loss": "cosine"},
]


class Given(nn.Module):
    """A student that says what it is told to."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.named = dict(named)

    def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.named.items() if name.partition("/")[0] in inputs}


def context(width: int = 6, **changes: Any) -> Context:
    settings: dict[str, Any] = {
        "student": nn.Identity(),
        "width": width,
        "embedding_dim": 5,
        "modalities": ("image",),
        "anchor_targets": {"image": {"targets": (4, 6)}},
        "num_tokens": {"image": 4},
        "token_dropout": {"image": 0.0},
    }
    return Context(**settings | changes)


def parts(
    loss: Any,
    tokens: Tensor,
    mask: Tensor,
    targets: Tensor,
    name: str = "tokens",
    modality: str = "image",
) -> dict[str, Tensor]:
    named = {f"{modality}/{name}": tokens, f"{modality}/mask": mask}
    batch = Batch(pair=(modality,), inputs={modality: Tokens(tokens)}, targets={"targets": targets})
    return loss(batch, Forward(Given(named), batch))


def drawn(seed: int = 0, num_rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, 3, 6], the mask of which are real, targets [B, 4, 6] of one token more."""
    rng = torch.Generator().manual_seed(seed)
    tokens = 2 * torch.randn(num_rows, 3, 6, generator=rng)
    mask = torch.arange(3) < torch.randint(1, 4, (num_rows, 1), generator=rng)
    return tokens, mask, 2 * torch.randn(num_rows, 4, 6, generator=rng)


def by_hand(config: Regression, tokens: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Float64, one real token after another."""
    errors = []
    for row, place in mask.nonzero().tolist():
        x, y = tokens[row, place], targets[row, place]
        if config.loss == "cosine":
            errors.append(1 - (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt()))
            continue
        of_channels = []
        for distance in (x - y).abs():
            if config.loss == "mse":
                of_channels.append(distance**2)
            elif distance < config.beta:
                of_channels.append(distance**2 / (2 * config.beta))
            else:
                of_channels.append(distance - config.beta / 2)
        errors.append(torch.stack(of_channels).sum() / len(x))
    return torch.stack(errors).sum() / len(errors)


@pytest.mark.parametrize("settings", LOSSES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_the_formulas(settings: dict[str, Any], seed: int) -> None:
    config = Regression(**settings)
    tokens, mask, targets = drawn(seed)
    tokens.requires_grad_()
    (value,) = parts(config.build(context()), tokens, mask, targets).values()
    (gradient,) = torch.autograd.grad(value, tokens)
    slow = tokens.detach().double().requires_grad_()
    expected = by_hand(config, slow, mask, targets.double())
    (expected_gradient,) = torch.autograd.grad(expected, slow)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_vector_is_regressed_from_the_features(settings: dict[str, Any]) -> None:
    config = Regression(**settings)
    rng = torch.Generator().manual_seed(0)
    features, targets = torch.randn(3, 5, generator=rng), torch.randn(3, 5, generator=rng)
    loss = config.build(context(anchor_targets={"image": {"targets": (5,)}}))
    (value,) = parts(loss, features, torch.ones(3, 4, dtype=torch.bool), targets, "features").values()
    expected = by_hand(config, features[:, None], torch.ones(3, 1, dtype=torch.bool), targets[:, None])
    torch.testing.assert_close(value, expected)


def test_linear_head_regresses_a_teacher_of_another_width_and_is_learned() -> None:
    loss = Regression(head="linear").build(context(width=8))
    rng = torch.Generator().manual_seed(0)
    tokens, mask, targets = torch.randn(3, 4, 8, generator=rng), torch.ones(3, 4, dtype=torch.bool), drawn()[2]
    head: Any = loss.heads["image"]
    (value,) = parts(loss, tokens, mask, targets).values()
    torch.autograd.backward(value)
    torch.testing.assert_close(value, (tokens @ head.weight.T + head.bias - targets).square().mean())
    assert head.weight.grad.abs().sum() > 0


def test_each_modality_has_a_head_and_a_part_of_its_own() -> None:
    shapes: dict[str, Any] = {"image": {"targets": (4, 6)}, "audio": {"targets": (4, 9)}, "text": {}}
    loss = Regression(head="linear").build(context(anchor_targets=shapes, num_tokens={"image": 4, "audio": 4}))
    assert set(loss.heads) == {"image", "audio"}
    tokens, mask = torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
    assert set(parts(loss, tokens, mask, torch.randn(2, 4, 9), modality="audio")) == {"audio"}
    assert set(parts(loss, tokens, mask, torch.randn(2, 4, 6))) == {"image"}


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_padding_counts_for_nothing_whatever_is_there(settings: dict[str, Any]) -> None:
    loss = Regression(**settings).build(context())
    tokens, mask, targets = drawn()
    noisy = tokens.masked_fill(~mask[..., None], 1e30).requires_grad_()
    (value,) = parts(loss, noisy, mask, targets).values()
    (expected,) = parts(loss, tokens, mask, targets).values()
    assert value == expected
    torch.autograd.backward(value)
    assert noisy.grad is not None
    assert (noisy.grad[~mask] == 0).all()


@given(seed=st.integers(0, 10_000), which=st.integers(0, len(LOSSES) - 1), num_rows=st.integers(2, 6))
def test_order_of_the_batch_changes_nothing_and_the_target_itself_is_best(
    seed: int, which: int, num_rows: int
) -> None:
    loss = Regression(**LOSSES[which]).build(context())
    tokens, mask, targets = drawn(seed, num_rows)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    (value,) = parts(loss, tokens, mask, targets).values()
    (other,) = parts(loss, tokens[order], mask[order], targets[order]).values()
    torch.testing.assert_close(value, other)
    (best,) = parts(loss, targets[:, :3].clone(), mask, targets).values()
    assert abs(best.item()) < 1e-6 < value.item()
    mean = targets[:, :3][mask].mean(0).expand(num_rows, 3, 6)  # one and the same for every token
    (collapsed,) = parts(loss, mean, mask, targets).values()
    assert best.item() <= collapsed.item() + 1e-6


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_cosine_does_not_depend_on_scale(scale: float, seed: int) -> None:
    loss = Regression(loss="cosine").build(context())
    tokens, mask, targets = drawn(seed)
    (value,) = parts(loss, tokens, mask, targets).values()
    (other,) = parts(loss, tokens * scale, mask, targets / scale).values()
    torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", LOSSES, ids=str)
@pytest.mark.parametrize("fill", [0.0, 1.0, 1e15])
def test_zero_identical_and_huge_tokens_give_finite_values_and_gradients(
    settings: dict[str, Any], fill: float
) -> None:
    loss = Regression(**settings).build(context())
    tokens = torch.full((2, 4, 6), fill, requires_grad=True)
    (value,) = parts(loss, tokens, torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, 6)).values()
    torch.autograd.backward(value)
    assert math.isfinite(value.item())
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()


@pytest.mark.parametrize("head", ["none", "linear"])
def test_value_is_computed_in_float32_under_autocast(head: Any) -> None:
    loss = Regression(head=head).build(context())
    tokens, mask, targets = drawn()
    half = tokens.bfloat16()
    (expected,) = parts(loss, half.float(), mask, targets).values()
    with torch.autocast("cpu", torch.bfloat16):
        (value,) = parts(loss, half, mask, targets.bfloat16().float()).values()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-2)


def test_no_gradient_reaches_the_target() -> None:
    tokens, mask, targets = drawn()
    targets.requires_grad_()
    (value,) = parts(Regression().build(context()), tokens.requires_grad_(), mask, targets).values()
    torch.autograd.backward(value)
    assert targets.grad is None


def test_state_holds_the_heads() -> None:
    first, second = (Regression(head="linear").build(context()) for _ in range(2))
    second.load_state_dict(first.state_dict())
    tokens, mask, targets = drawn()
    assert parts(first, tokens, mask, targets) == parts(second, tokens, mask, targets)
    assert not Regression().build(context()).state_dict()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"width": 8}, r"image tokens are 8 wide, and the target `targets` 6: set student\.width to 6"),
    "features": (
        {"anchor_targets": {"image": {"targets": (6,)}}},
        r"image features are 5 wide, and the target `targets` 6: set student\.embedding_dim to 6",
    ),
    "dropped": ({"token_dropout": {"image": 0.5}}, r"adapters\.image\.token_dropout is 0\.5.*set it to 0"),
    "tokens": ({"num_tokens": {"image": 5}}, "the student reads 5 image tokens, and the target `targets` has 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_compared_is_refused_when_it_is_built(name: str) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        Regression().build(context(**changes))
