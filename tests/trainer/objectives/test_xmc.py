"""Word-region and generated-vs-real contrast against loops in float64, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives import word_region
from trainer.objectives.generated import Generated
from trainer.objectives.loss import Context
from trainer.objectives.word_region import WordRegion

WIDTH, REAL = 6, 4
CONTEXT = Context(
    student=nn.Identity(),
    width=WIDTH,
    embedding_dim=5,
    modalities=("image", "text"),
    anchor_targets={"image": {"features": (REAL,)}},
)
CONFIGS: list[Any] = [WordRegion(), WordRegion(rho_1=9.0, rho_2=2.0, temperature=0.5), Generated()]
Named = dict[str, Tensor]


class Fixed(nn.Module):
    """A student whose outputs are given."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.named = named

    def forward(self, inputs: Mapping[str, Tokens]) -> Mapping[str, Tensor]:
        return self.named


def drawn(num_rows: int, *, seed: int = 0, num_words: int = 5, num_regions: int = 7) -> tuple[Named, Batch]:
    """A student's outputs for captions of unlike length and images whose last regions may be padding."""
    torch.manual_seed(seed)
    named = {"text/tokens": torch.randn(num_rows, num_words, WIDTH)}
    named |= {
        "image/tokens": 3 * torch.randn(num_rows, num_regions, WIDTH),
        "text/features": torch.randn(num_rows, 5),
    }
    for modality, most in (("text", num_words), ("image", num_regions)):
        lengths = torch.randint(1, most + 1, (num_rows, 1))
        named[f"{modality}/mask"] = torch.arange(most) < lengths
    inputs = {modality: Tokens(torch.zeros(num_rows, 1, 1)) for modality in ("image", "text")}
    return named, Batch(pair=("image", "text"), inputs=inputs, targets={"features": torch.rand(num_rows, REAL)})


def evaluate(loss: nn.Module, named: Named, batch: Batch) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = loss(batch, Forward(Fixed(named), batch))
    return parts


def total(parts: Mapping[str, Tensor]) -> float:
    return float(torch.stack(list(parts.values())).sum().detach())


def contrast(scores: Tensor, first: str, second: str) -> dict[str, Tensor]:
    """Either way, by loops: scores [B, B] of `first` items with `second` ones, divided by t already."""
    parts = {f"{first}-to-{second}": torch.zeros((), dtype=torch.float64)}
    parts[f"{second}-to-{first}"] = torch.zeros((), dtype=torch.float64)
    for i in range(len(scores)):
        for part, row in zip(parts, (scores[i], scores[:, i]), strict=True):
            parts[part] = parts[part] - (row[i].exp() / row.exp().sum()).log() / (2 * len(scores))
    return parts


def reference(config: Any, loss: Any, named: Named, batch: Batch) -> dict[str, Tensor]:
    """The parts from the formulas, one pair and one word after the other."""
    num_rows = batch.num_rows
    scores = torch.zeros(num_rows, num_rows, dtype=torch.float64)
    if isinstance(config, Generated):
        made = loss.heads["image"](named["text/features"])
        for i in range(num_rows):
            for j in range(num_rows):
                scores[i, j] = F.cosine_similarity(made[i], batch.targets["features"][j].double(), dim=0)
        return contrast(scores / config.temperature, "generated", "real")
    rows: list[list[Tensor]] = []
    for i in range(num_rows):
        regions = named["image/tokens"][i][named["image/mask"][i]]
        rows.append([])
        for j in range(num_rows):
            total = torch.zeros((), dtype=torch.float64)
            for word in named["text/tokens"][j][named["text/mask"][j]]:
                attention = torch.stack([F.cosine_similarity(word, region, dim=0) for region in regions])
                attention = (config.rho_1 * attention).softmax(0)
                context = (attention[:, None] * regions).sum(0)
                total = total + (config.rho_2 * F.cosine_similarity(context, word, dim=0)).exp()
            rows[-1].append(total.log() / config.rho_2 / config.temperature)
    return contrast(torch.stack([torch.stack(row) for row in rows]), "image", "text")


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("num_rows", [2, 5])
@pytest.mark.parametrize("most_at_once", [1, 1 << 24])
def test_objective_and_its_gradients_equal_a_float64_loop(
    config: Any, num_rows: int, most_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_region, "MOST_AT_ONCE", most_at_once)
    torch.manual_seed(1)
    loss = config.build(CONTEXT)
    named, batch = drawn(num_rows)
    leaves = [named[name] for name in ("text/tokens", "image/tokens", "text/features")]
    for leaf in leaves:
        leaf.requires_grad_()
    found = evaluate(loss, named, batch)
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    gradients = [leaf.grad for leaf in leaves] + [p.grad for p in loss.parameters()]
    loss.double().zero_grad()
    doubles = {
        name: value.detach().double().requires_grad_() if value.is_floating_point() else value
        for name, value in named.items()
    }
    expected = reference(config, loss, doubles, batch)
    torch.autograd.backward(torch.stack(list(expected.values())).sum())
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        torch.testing.assert_close(found[part].double(), value, rtol=1e-4, atol=1e-5)
    wanted = [doubles[name].grad for name in ("text/tokens", "image/tokens", "text/features")]
    for gradient, one in zip(gradients, wanted + [p.grad for p in loss.parameters()], strict=True):
        assert (gradient is None) == (one is None)
        if gradient is not None and one is not None:
            torch.testing.assert_close(gradient.double(), one, rtol=1e-3, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100.0))
def test_order_of_pairs_and_scale_change_nothing(seed: int, scale: float) -> None:
    named, batch = drawn(4, seed=seed)
    order = torch.randperm(4)
    for config in CONFIGS:
        loss = config.build(CONTEXT)
        value = total(evaluate(loss, named, batch))
        moved = {name: tensor[order] for name, tensor in named.items()}
        other = Batch(pair=batch.pair, inputs=batch.inputs, targets={"features": batch.targets["features"][order]})
        assert total(evaluate(loss, moved, other)) == pytest.approx(value, rel=1e-3, abs=1e-4)
        if isinstance(config, WordRegion):
            scaled = {**named, **{f"{m}/tokens": scale * named[f"{m}/tokens"] for m in ("image", "text")}}
            assert total(evaluate(loss, scaled, batch)) == pytest.approx(value, rel=1e-3, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_word_region_rewards_alignment_and_no_collapse(seed: int) -> None:
    torch.manual_seed(seed)
    tokens, ones = torch.randn(4, 6, 32), torch.ones(4, 6, dtype=torch.bool)
    _, batch = drawn(4)
    loss = WordRegion().build(CONTEXT)

    def of(words: Tensor, regions: Tensor) -> float:
        named = {"text/tokens": words, "image/tokens": regions, "text/mask": ones, "image/mask": ones}
        return total(evaluate(loss, named, batch))

    collapsed = of(torch.ones_like(tokens), torch.ones_like(tokens))
    assert collapsed == pytest.approx(math.log(4), abs=1e-4)
    assert of(tokens, tokens.flip(1)) < collapsed - 0.2


def test_one_vector_generated_of_every_sentence_is_no_better_than_chance() -> None:
    named, batch = drawn(8)
    loss = Generated().build(CONTEXT)
    named["text/features"] = named["text/features"][:1].expand(8, -1)
    parts = evaluate(loss, named, batch)
    assert float(parts["real-to-generated"].detach()) == pytest.approx(math.log(8) / 2, abs=1e-5)
    assert float(parts["generated-to-real"].detach()) >= math.log(8) / 2 - 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("case", ["identical", "zero", "huge", "bf16", "cancelling"])
def test_no_nan_at_the_edges(config: Any, case: str) -> None:
    named, batch = drawn(2, num_regions=2)
    loss = config.build(CONTEXT)
    for tensor in [value for value in named.values() if value.is_floating_point()] + [batch.targets["features"]]:
        if case == "identical":
            tensor.copy_(tensor[:1].expand_as(tensor).clone())
        elif case == "zero":
            tensor.zero_()
        elif case == "huge":
            tensor.mul_(1e12)
    if case == "cancelling":  # two opposite regions, and words between them: a context of no length
        named["image/tokens"].copy_(torch.eye(WIDTH)[0] * torch.tensor([1.0, -1.0])[:, None])
        named["text/tokens"].copy_(torch.eye(WIDTH)[1].expand_as(named["text/tokens"]))
        named["image/mask"].fill_(True)
    leaves = [named[name].requires_grad_() for name in ("text/tokens", "image/tokens", "text/features")]
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        given = {n: v.bfloat16() if case == "bf16" and v.is_floating_point() else v for n, v in named.items()}
        parts = evaluate(loss, given, batch)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in parts.values())
    torch.autograd.backward(torch.stack(list(parts.values())).sum())
    assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in [*leaves, *loss.parameters()])


@pytest.mark.parametrize("config", [WordRegion(), Generated()], ids=str)
def test_batch_without_captions_has_no_part(config: Any) -> None:
    named, batch = drawn(3)
    alone = Batch(pair=("image",), inputs={"image": batch.inputs["image"]})
    assert evaluate(config.build(CONTEXT), named, alone) == {}


def test_what_an_objective_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="compares audio tokens"):
        WordRegion(regions="audio").build(CONTEXT)
    context = Context(
        student=nn.Identity(), width=6, embedding_dim=5, anchor_targets={"image": {"features": (49, 7)}}
    )
    with pytest.raises(ConfigError, match=r"features of image is of shape \[49, 7\]"):
        Generated().build(context)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_state_is_whole(config: Any) -> None:
    named, batch = drawn(3)
    first, second = config.build(CONTEXT), config.build(CONTEXT)
    second.load_state_dict(first.state_dict())
    assert evaluate(first, named, batch) == evaluate(second, named, batch)
