"""What every student must do, and the layers beneath."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contract.errors import ConfigError
from trainer.batch import Tokens
from trainer.students.adapters import InputShape, MlpAdapter, Standardise, TransformerAdapter, thinned
from trainer.students.layers import AttentionPool, Block, MeanPool, attend, unit
from trainer.students.mlp import MlpStudent
from trainer.students.transformer import TransformerStudent

SHAPES = {"image": InputShape(num_tokens=9, width=12), "text": InputShape(num_tokens=7, width=5)}
ADAPTERS: dict[str, Any] = {
    "image": MlpAdapter(),
    "text": TransformerAdapter(depth=2, num_heads=2, token_dropout=0.3),
    "audio": MlpAdapter(),
}
STUDENTS: list[Any] = [
    MlpStudent(width=16, embedding_dim=8, num_heads=2, adapters=ADAPTERS),
    MlpStudent(width=16, embedding_dim=8, num_heads=2, pooling="mean", adapters=ADAPTERS),
    TransformerStudent(width=16, embedding_dim=8, num_heads=2, adapters=ADAPTERS),
    TransformerStudent(width=16, embedding_dim=8, num_heads=2, pooling="mean", adapters=ADAPTERS),
]


def inputs(num_rows: int = 3) -> dict[str, Tokens]:
    rng = torch.Generator().manual_seed(0)
    return {
        "image": Tokens(torch.randn(num_rows, 9, 12, generator=rng)),
        "text": Tokens(torch.randn(num_rows, 6, 5, generator=rng), torch.tensor([6, 2, 1][:num_rows])),
    }


@pytest.mark.parametrize("config", STUDENTS, ids=str)
def test_student_names_a_unit_embedding_and_logits_for_each_modality_it_is_given(config: Any) -> None:
    student = config.build(SHAPES, 4)
    named = student(inputs())
    names = ("tokens", "mask", "features", "embedding", "logits")
    assert set(named) == {f"{modality}/{name}" for modality in SHAPES for name in names}
    for modality in SHAPES:
        assert named[f"{modality}/logits"].shape == (3, 4)
        lengths = named[f"{modality}/embedding"].norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones(3))
        assert named[f"{modality}/mask"].shape == named[f"{modality}/tokens"].shape[:2]
        torch.testing.assert_close(unit(named[f"{modality}/features"]), named[f"{modality}/embedding"])
    assert set(student({"text": inputs()["text"]})) == {f"text/{name}" for name in names}


@pytest.mark.parametrize("config", STUDENTS, ids=str)
def test_padding_changes_nothing(config: Any) -> None:
    student = config.build(SHAPES, 0).eval()
    tokens, length, _ = inputs()["text"]
    assert length is not None
    noisy = tokens.clone()
    for row, n in enumerate(length.tolist()):
        noisy[row, n:] = 100.0
    alone = [
        student({"text": Tokens(tokens[row : row + 1, :n], torch.tensor([n]))})["text/embedding"]
        for row, n in enumerate(length.tolist())
    ]
    found = student({"text": Tokens(noisy, length)})["text/embedding"]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", STUDENTS, ids=str)
def test_an_empty_row_and_a_zero_one_give_finite_outputs_and_gradients(config: Any) -> None:
    student = config.build(SHAPES, 4)
    tokens = Tokens(torch.zeros(2, 7, 5), torch.tensor([0, 3]))
    named = student({"text": tokens})
    torch.autograd.backward(sum(tensor.sum() for tensor in named.values()))
    assert all(torch.isfinite(tensor).all() for tensor in named.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())


@pytest.mark.parametrize("config", STUDENTS, ids=str)
def test_trunk_is_shared_and_adapters_are_not(config: Any) -> None:
    student = config.build(SHAPES, 4)
    torch.autograd.backward(student({"image": inputs()["image"]})["image/logits"].sum())
    touched = {name for name, p in student.named_parameters() if p.grad is not None}
    assert not any("text" in name for name in touched)
    others = [name for name, _ in student.named_parameters() if "text" not in name]
    assert all(name in touched for name in others if not name.endswith("unseen"))  # of tokens that are hidden


def test_student_without_classes_has_no_logits() -> None:
    named = STUDENTS[0].build(SHAPES, 0)(inputs())
    assert not any(name.endswith("logits") for name in named)


def test_modality_without_adapter_is_refused() -> None:
    config = MlpStudent(adapters={"image": MlpAdapter()})
    with pytest.raises(ConfigError, match=r"student\.adapters has no entry for text"):
        config.build(SHAPES, 0)


@pytest.mark.parametrize("kind", [MlpStudent, TransformerStudent])
def test_heads_that_do_not_divide_the_width_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="width 30 can't be shared evenly by 4 heads"):
        kind(width=30, adapters=ADAPTERS)
    with pytest.raises(ValueError, match="width 28 can't be shared evenly by 3 heads"):
        kind(width=28, adapters={"text": TransformerAdapter(num_heads=3)})


def test_attention_pool_equals_its_formula() -> None:
    layer = AttentionPool(8, 2)
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    expected = []
    for row, n in enumerate([5, 2, 1]):
        x = layer.norm(tokens[row, :n])
        weights, values = layer.score(x).softmax(0), layer.value(x)
        heads = [weights[:, h] @ values[:, 4 * h : 4 * h + 4] for h in range(2)]
        expected.append(torch.cat(heads))
    torch.testing.assert_close(layer(tokens, mask), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_mean_pool_leaves_padding_out() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert MeanPool()(tokens, torch.tensor([[True, True, False]])).item() == 2


def test_block_without_mask_equals_block_with_a_full_one() -> None:
    block, tokens = Block(8, 2, 2.0, 0.0), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(tokens, None), block(tokens, torch.ones(2, 4, dtype=torch.bool)))


@pytest.mark.parametrize("is_reduced", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_formula_on_a_cpu_in_float32_whatever_the_autocast(
    causal: bool, is_reduced: bool
) -> None:
    query, key, value = (torch.randn(2, 3, 5, 4).bfloat16().float() for _ in range(3))
    mask = None if causal else torch.rand(2, 5) < 0.6
    seen = torch.ones(5, 5, dtype=torch.bool).tril() if causal else torch.ones(5, 5, dtype=torch.bool)
    if mask is not None:
        mask[:, 0] = True
        seen = mask[:, None, None, :] & seen
    scores = (query.double() @ key.double().transpose(-1, -2) / 2).masked_fill(~seen, -torch.inf)
    given = (x.bfloat16() if is_reduced else x for x in (query, key, value))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_reduced):
        found = attend(*given, mask, causal=causal)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), scores.softmax(-1) @ value.double(), atol=1e-6, rtol=1e-5)


def test_standardised_tokens_have_mean_zero_and_deviation_one_over_real_tokens() -> None:
    layer = Standardise(3)
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(50, 6, 3, generator=rng) * torch.tensor([1e-4, 1.0, 1e4]) + 5
    mask = torch.arange(6) < torch.randint(1, 7, (50, 1), generator=rng)
    layer.measure(tokens.masked_fill(~mask[..., None], 1e9), mask)
    real = layer(tokens)[mask]
    torch.testing.assert_close(real[:, 1:].mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(real[:, 1:].std(0), torch.ones(2), rtol=1e-3, atol=0)


def test_constant_channel_is_switched_off() -> None:
    layer = Standardise(2)
    tokens = torch.stack([torch.linspace(-1, 1, 10), torch.full((10,), 3.0)], dim=1)[None]
    layer.measure(tokens, None)
    assert layer(tokens + 0.1)[..., 1].abs().max() == 0
    layer.measure(torch.ones(1, 4, 2), None)
    assert layer(tokens).abs().max() == 0


def test_thinned_rows_keep_real_tokens_before_padding() -> None:
    tokens = torch.arange(40.0).view(4, 10, 1)
    mask = torch.arange(10) < torch.tensor([10, 6, 5, 2])[:, None]
    torch.manual_seed(0)
    kept, kept_mask = thinned(tokens, mask, 0.5)
    assert kept.shape == (4, 5, 1)
    assert kept_mask is not None
    assert kept_mask.sum(1).tolist() == [5, 5, 5, 2]
    for row in range(4):
        values: Tensor = kept[row, kept_mask[row], 0]
        assert len(set(values.tolist())) == len(values)
        assert ((values >= 10 * row) & (values < 10 * row + [10, 6, 5, 2][row])).all()


def test_unit_of_zero_is_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    torch.autograd.backward(unit(x).sum())
    assert unit(x).abs().max() == 0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", [MlpAdapter, TransformerAdapter])
def test_dropped_input_channels_are_drawn_in_training_alone(kind: type) -> None:
    shape = InputShape(num_tokens=1, width=1000)
    adapter = kind(dropout=0.0, input_dropout=0.5).build(shape, 8)
    seen: list[torch.Tensor] = []
    adapter.project.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ones = torch.ones(4, 1, 1000)
    torch.manual_seed(0)
    adapter.train()(ones, None)
    adapter.eval()(ones, None)
    trained, evaluated = seen
    assert set(trained.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < (trained == 0).float().mean() < 0.6
    assert not torch.equal(trained[0], trained[1])
    assert torch.equal(evaluated, ones)
