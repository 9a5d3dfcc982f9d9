"""Masked words, masked regions and word-patch alignment against loops in float64, and at the edges."""

from __future__ import annotations

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
from trainer.objectives.hidden import hidden
from trainer.objectives.loss import Context
from trainer.objectives.mlm import Mlm
from trainer.objectives.mrm import Mrm
from trainer.objectives.word_patch import WordPatch
from trainer.students.adapters import InputShape, MlpAdapter, TransformerAdapter
from trainer.students.fusion import Fusion
from trainer.students.mlp import Mlp, MlpStudent

STILL: dict[str, Any] = {"dropout": 0.0}
STUDENT = MlpStudent(
    width=16,
    embedding_dim=8,
    num_heads=2,
    adapters={"image": MlpAdapter(**STILL), "text": TransformerAdapter(num_heads=2, **STILL)},
    fusion=Fusion(num_heads=2, **STILL),
    **STILL,
)
SHAPES = {"image": InputShape(num_tokens=4, width=6), "text": InputShape(num_tokens=7, width=5)}
VOCABULARY = ("[unknown]", "[CLS]", "a", "red", "star")
CONFIGS: list[Any] = [Mlm(), Mlm(reads=None), Mrm(), Mrm(target="logits"), WordPatch()]


def made(num_rows: int = 5, *, seed: int = 0) -> tuple[Mlp, Context, Batch]:
    """A student, and a batch of whose captions each begins with [CLS]."""
    torch.manual_seed(seed)
    student = STUDENT.build(SHAPES, 0)
    length = torch.randint(2, 8, (num_rows,))
    length[0] = 7
    inputs = {
        "image": Tokens(3 + 2 * torch.randn(num_rows, 4, 6)),
        "text": Tokens(torch.randn(num_rows, 7, 5), length),
    }
    for modality, tokens in inputs.items():
        student.adapters.measure(modality, tokens)
    words = torch.randint(2, len(VOCABULARY), (num_rows, 7))
    words[:, 0] = 1
    words[torch.arange(7) >= length[:, None]] = -1
    context = Context(
        student=student,
        width=16,
        embedding_dim=8,
        modalities=("image", "text"),
        targets={"logits": (3,)},
        vocabulary=VOCABULARY,
        special=(1,),
    )
    targets = {"logits": 3 * torch.randn(num_rows, 3)}
    return student, context, Batch(pair=("image", "text"), inputs=inputs, words={"text": words}, targets=targets)


def evaluate(loss: Any, student: nn.Module, batch: Batch, *, seed: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    parts: dict[str, Tensor] = loss(batch, Forward(student, batch))
    return parts


def loop_hidden(allowed: Tensor, share: float, seed: int = 7) -> Tensor:
    """What `hidden` draws first after the seed, row by row."""
    torch.manual_seed(seed)
    order = torch.rand(allowed.shape)
    found = torch.zeros_like(allowed)
    for row, (ranks, places) in enumerate(zip(order, allowed, strict=True)):
        candidates = [t for t in range(len(places)) if places[t]]
        wanted = max(1, round(len(candidates) * share))
        for place in sorted(candidates, key=lambda t: float(ranks[t]))[:wanted]:
            found[row, place] = True
    return found


def double(batch: Batch, masked: Mapping[str, Tensor]) -> dict[str, Tokens]:
    return {m: Tokens(tokens.values.double(), tokens.length, masked.get(m)) for m, tokens in batch.inputs.items()}


def reference(config: Any, loss: Any, student: Any, batch: Batch) -> dict[str, Tensor]:
    """The parts, by loops; the student and the objective are in float64 already."""
    plain, num_rows = student(double(batch, {})), batch.num_rows
    if isinstance(config, WordPatch):
        return loop_word_patch(config, plain)
    if isinstance(config, Mlm):
        words = batch.words["text"]
        masked = loop_hidden((words >= 0) & (words != 1), config.share)
        seen = student(double(batch, {"text": masked}))
        sides = [seen["text/tokens"], seen["text/mask"], plain["image/tokens"], plain["image/mask"]]
        tokens = seen["text/tokens"] if config.reads is None else student.fusion(*sides)["tokens"]
        terms = []
        for i, t in masked.nonzero().tolist():
            scores = loss.head(tokens[i, t]).exp()
            terms.append(-(scores[words[i, t]] / scores.sum()).log())
        return {"words": torch.stack(terms).mean()}
    masked = loop_hidden(torch.ones(num_rows, 4, dtype=torch.bool), config.share)
    seen = student(double(batch, {"image": masked}))
    fused = student.fusion(seen["image/tokens"], seen["image/mask"], plain["text/tokens"], plain["text/mask"])
    values = batch.inputs["image"].values.double()
    standardise = student.adapters.by_modality["image"].standardise
    terms = []
    for i, t in masked.nonzero().tolist():
        target = (values[i, t] - standardise.mean) / standardise.deviation
        terms.append((loss.head(fused["tokens"][i, t]) - target).square().mean())
    parts = {"features": torch.stack(terms).mean()}
    if config.target is not None:
        logs = F.log_softmax(loss.classify(fused["pooled"]), -1)
        parts["classes"] = F.kl_div(logs, F.softmax(batch.targets["logits"].double(), -1), reduction="batchmean")
    return parts


def loop_word_patch(config: WordPatch, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """IPOT as in algorithm 1 of the paper, on what is real of each pair."""
    num_rows = len(plain["text/tokens"])
    torch.manual_seed(7)
    shift = int(torch.randint(1, num_rows, (1,)))
    parts = {"matched": torch.zeros((), dtype=torch.float64), "mismatched": torch.zeros((), dtype=torch.float64)}
    for i in range(num_rows):
        for part, j, sign in (("matched", i, 1), ("mismatched", (i + shift) % num_rows, -1)):
            words = F.normalize(plain["text/tokens"][i][plain["text/mask"][i]], dim=-1)
            patches = F.normalize(plain["image/tokens"][j][plain["image/mask"][j]], dim=-1)
            cost = 1 - words @ patches.T
            with torch.no_grad():
                kernel, plan = torch.exp(-cost / config.epsilon), torch.ones_like(cost)
                n, m = cost.shape
                left = torch.full((n,), 1 / n, dtype=torch.float64)
                for _ in range(config.num_iterations):
                    q = kernel * plan
                    right = 1 / m / (q.T @ left)
                    left = 1 / n / (q @ right)
                    plan = left[:, None] * q * right
            parts[part] = parts[part] + sign * (plan * cost).sum() / (2 * num_rows)
    return parts


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("num_rows", [2, 5])
def test_objective_and_its_gradients_equal_a_float64_loop(config: Any, num_rows: int) -> None:
    student, context, batch = made(num_rows)
    loss = config.build(context)
    found = evaluate(loss, student, batch)
    gradients = {}
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    for module in (student, loss):
        gradients |= {(id(module), n): p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        module.zero_grad()
        module.double()
    expected = reference(config, loss, student, batch)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        torch.testing.assert_close(found[part].double(), value, rtol=1e-4, atol=1e-5)
    torch.autograd.backward(torch.stack(list(expected.values())).sum())
    for module in (student, loss):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and parameter.grad.any():
                torch.testing.assert_close(
                    gradients[id(module), name].double(), parameter.grad, rtol=1e-3, atol=1e-5, msg=name
                )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 12), st.floats(0, 0.99))
def test_share_of_each_row_is_hidden_and_nothing_else(
    seed: int, num_rows: int, num_tokens: int, share: float
) -> None:
    torch.manual_seed(seed)
    allowed = torch.rand(num_rows, num_tokens) < 0.7
    found = hidden(allowed, share)
    assert not (found & ~allowed).any()
    counts = allowed.sum(1)
    wanted = (counts * share).round().clamp(min=1).minimum(counts)
    assert torch.equal(found.sum(1).float(), wanted.float())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("case", ["identical", "zero", "huge", "bf16"])
def test_no_nan_at_the_edges(config: Any, case: str) -> None:
    student, context, batch = made(2)
    loss = config.build(context)
    for name, tensor in [*((m, tokens.values) for m, tokens in batch.inputs.items()), *batch.targets.items()]:
        if case == "identical":
            tensor.copy_(tensor[:1].expand_as(tensor))
        elif case == "zero":
            tensor.zero_()
        elif case == "huge":
            tensor.mul_(1e30 if name == "logits" else 1e6)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        parts = evaluate(loss, student, batch)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in parts.values())
    torch.autograd.backward(torch.stack(list(parts.values())).sum())
    for module in (student, loss):
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_captions_of_special_tokens_alone_have_a_loss_of_zero() -> None:
    student, context, batch = made(2)
    batch.words["text"].fill_(1)
    parts = evaluate(Mlm().build(context), student, batch)
    assert parts["words"].item() == 0
    torch.autograd.backward(parts["words"])


class Fixed(nn.Module):
    """A student whose outputs are given."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.named = named

    def forward(self, inputs: Mapping[str, Tokens]) -> Mapping[str, Tensor]:
        return self.named


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100.0))
def test_word_patch_rewards_alignment_and_no_collapse_whatever_the_scale(seed: int, scale: float) -> None:
    _, context, batch = made(4)
    torch.manual_seed(seed)
    tokens = torch.randn(4, 6, 16)
    loss = WordPatch().build(context)

    def total(words: Tensor, patches: Tensor) -> float:
        named = {"text/tokens": words, "image/tokens": patches}
        named |= {f"{m}/mask": torch.ones(4, 6, dtype=torch.bool) for m in ("text", "image")}
        return float(sum(evaluate(loss, Fixed(named), batch, seed=seed).values()))

    aligned = total(tokens, tokens.flip(1))
    collapsed = total(torch.ones_like(tokens), torch.ones_like(tokens))
    assert aligned < collapsed - 0.1
    assert collapsed == pytest.approx(0, abs=1e-5)
    assert total(scale * tokens, tokens.flip(1)) == pytest.approx(aligned, abs=1e-4)


@pytest.mark.parametrize("config", [Mlm(), Mrm(), WordPatch()], ids=str)
def test_batch_without_captions_has_no_part(config: Any) -> None:
    student, context, batch = made(3)
    alone = Batch(pair=("image",), inputs={"image": batch.inputs["image"]})
    assert evaluate(config.build(context), student, alone) == {}


def test_what_an_objective_lacks_is_refused() -> None:
    _, context, _ = made(2)
    bare = Context(student=nn.Identity(), width=16, embedding_dim=8)
    for config, message in ((Mlm(), "fuses pairs"), (Mlm(reads=None), "tells words"), (WordPatch(), "aligns text")):
        with pytest.raises(ConfigError, match=message):
            config.build(bare)
    with pytest.raises(ConfigError, match="hides audio tokens"):
        Mrm(modality="audio").build(context)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_state_is_whole(config: Any) -> None:
    student, context, batch = made(3)
    first, second = config.build(context), config.build(context)
    second.load_state_dict(first.state_dict())
    assert evaluate(first, student, batch) == evaluate(second, student, batch)
