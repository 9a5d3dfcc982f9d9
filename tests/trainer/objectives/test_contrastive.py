"""The two triplets, simclr_smooth, siglip and barlow: against independent implementations, and at the edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.barlow import Barlow
from trainer.objectives.loss import Context, Loss
from trainer.objectives.siglip import SigLip
from trainer.objectives.simclr_smooth import SimClrSmooth
from trainer.objectives.triplet_max import TripletMax
from trainer.objectives.triplet_sum import TripletSum

DIM = 16
CONTEXT = Context(student=nn.Identity(), width=DIM, embedding_dim=DIM)
CONFIGS: list[Any] = [
    TripletSum(),
    TripletSum(margin=0.5),
    TripletMax(),
    TripletMax(mining="semi_hard"),
    TripletMax(anneal_steps=4),
    TripletMax(mining="semi_hard", anneal_steps=4),
    SimClrSmooth(),
    SimClrSmooth(temperature=0.5),
    SigLip(),
    SigLip(scale=5.0, bias=1.0, learnable=False),
    Barlow(),
    Barlow(redundancy=0.5),
]
BARLOW_WITH_HEAD = Barlow(head_widths=(12, 9))


class Said(nn.Module):
    """A student that says what it is given: features, and their directions."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.features = {"image": first, "text": second}

    def forward(self, inputs: dict[str, Tokens]) -> dict[str, Tensor]:
        named = {f"{modality}/features": x for modality, x in self.features.items()}
        return named | {f"{modality}/embedding": F.normalize(x, dim=-1) for modality, x in self.features.items()}


def drawn(num_rows: int, seed: int = 0, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """Features float32 [B, D] of two modalities that know of one another."""
    rng = torch.Generator().manual_seed(seed)
    first = torch.randn(num_rows, dim, generator=rng)
    return first, first + 1.5 * torch.randn(num_rows, dim, generator=rng)


def parts(loss: Loss, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    tokens = Tokens(torch.zeros(len(first), 1, 1))
    batch = Batch(pair=("image", "text"), inputs={"image": tokens, "text": tokens})
    found: dict[str, Tensor] = loss(batch, Forward(Said(first, second), batch))
    return found


def total(loss: Loss, first: Tensor, second: Tensor) -> Tensor:
    return torch.stack(list(parts(loss, first, second).values())).sum()


def made(config: Any, num_steps: int = 0) -> Loss:
    """The objective, after so many steps."""
    loss: Loss = config.build(CONTEXT)
    for _ in range(num_steps):
        loss.stepped(nn.Identity())
    return loss


def cosines(first: Tensor, second: Tensor) -> Tensor:
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T


def loop_triplet(config: Any, first: Tensor, second: Tensor, num_steps: int = 0) -> Tensor:
    s, num_rows = cosines(first, second), len(first)
    loss = torch.zeros((), dtype=s.dtype)
    for scores in (s, s.T):
        for i in range(num_rows):
            others = [j for j in range(num_rows) if j != i]
            hinges = {j: (config.margin + scores[i, j] - scores[i, i]).clamp(min=0) for j in others}
            whole = torch.stack(list(hinges.values())).sum()
            if isinstance(config, TripletSum):
                loss = loss + whole
                continue
            row = scores[i].tolist()
            farther = [j for j in others if row[j] < row[i]]
            if config.mining == "hardest":
                chosen = max(others, key=row.__getitem__)
            elif farther:
                chosen = max(farther, key=row.__getitem__)
            else:
                chosen = min(others, key=row.__getitem__)
            share = min(1, num_steps / config.anneal_steps) if config.anneal_steps else 1
            loss = loss + (1 - share) * whole + share * hinges[chosen]
    return loss / num_rows


def loop_simclr_smooth(config: SimClrSmooth, first: Tensor, second: Tensor, num_steps: int = 0) -> Tensor:
    terms = (cosines(first, second) / config.temperature).exp()
    num_rows, loss = len(first), torch.zeros((), dtype=first.dtype)
    for i in range(num_rows):
        others = [j for j in range(num_rows) if j != i]
        loss = loss - (terms[i, i] / sum(terms[i, j] for j in others)).log()
        loss = loss - (terms[i, i] / sum(terms[j, i] for j in others)).log()
    return loss / num_rows


def loop_siglip(config: SigLip, first: Tensor, second: Tensor, num_steps: int = 0) -> Tensor:
    s, num_rows, loss = cosines(first, second), len(first), torch.zeros((), dtype=first.dtype)
    for i in range(num_rows):
        for j in range(num_rows):
            z = 1 if i == j else -1
            loss = loss - (1 / (1 + (-z * (config.scale * s[i, j] + config.bias)).exp())).log()
    return loss / num_rows


def loop_barlow(config: Barlow, first: Tensor, second: Tensor, num_steps: int = 0) -> Tensor:
    a, b = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (first, second))
    loss, width = torch.zeros((), dtype=first.dtype), a.shape[1]
    for i in range(width):
        for j in range(width):
            c = (a[:, i] * b[:, j]).sum() / len(a)
            loss = loss + ((1 - c) ** 2 if i == j else config.redundancy * c**2)
    return loss


LOOPS: dict[type, Callable[..., Tensor]] = {
    TripletSum: loop_triplet,
    TripletMax: loop_triplet,
    SimClrSmooth: loop_simclr_smooth,
    SigLip: loop_siglip,
    Barlow: loop_barlow,
}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("num_rows", [2, 9])
@pytest.mark.parametrize("num_steps", [0, 3, 5])
def test_objective_and_its_gradient_equal_a_float64_loop(config: Any, num_rows: int, num_steps: int) -> None:
    pair = [x.requires_grad_() for x in drawn(num_rows, seed=num_steps)]
    double = [x.detach().double().requires_grad_() for x in pair]
    found, expected = total(made(config, num_steps), *pair), LOOPS[type(config)](config, *double, num_steps)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.autograd.backward([found, expected])
    for x, reference in zip(pair, double, strict=True):
        assert reference.grad is not None
        torch.testing.assert_close(x.grad, reference.grad.float(), rtol=1e-3, atol=1e-4)


def triplets_of_metric_learning(config: Any, first: Tensor, second: Tensor, mined: Any = None) -> Tensor:
    """Both directions by pytorch-metric-learning, of which the gallery is the other modality."""
    loss = TripletMarginLoss(config.margin, distance=CosineSimilarity(), reducer=SumReducer())
    # Two tensors: where both are the same one, the library takes row i and its partner for one item.
    labels, partners = torch.arange(len(first)), torch.arange(len(first))
    both = torch.zeros(())
    for queries, gallery in ((first, second), (second, first)):
        chosen = None if mined is None else mined(queries, labels, gallery, partners)
        both = both + loss(queries, labels, chosen, ref_emb=gallery, ref_labels=partners)
    return both / len(first)


@pytest.mark.parametrize(
    ("config", "miner"),
    [(TripletSum(), None), (TripletMax(), BatchHardMiner(distance=CosineSimilarity()))],
    ids=["sum", "max"],
)
def test_triplets_equal_pytorch_metric_learning(config: Any, miner: Any) -> None:
    pair = [x.requires_grad_() for x in drawn(12)]
    other = [x.detach().clone().requires_grad_() for x in pair]
    found, expected = total(made(config), *pair), triplets_of_metric_learning(config, *other, miner)
    torch.testing.assert_close(found, expected)
    torch.autograd.backward([found, expected])
    for x, reference in zip(pair, other, strict=True):
        torch.testing.assert_close(x.grad, reference.grad)


def test_barlow_equals_lightly() -> None:
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.02)
    pair = [x.requires_grad_() for x in drawn(20)]
    other = [x.detach().clone().requires_grad_() for x in pair]
    found, expected = total(made(Barlow(redundancy=0.02)), *pair), theirs(*other)
    torch.testing.assert_close(found, expected)
    torch.autograd.backward([found, expected])
    for x, reference in zip(pair, other, strict=True):
        torch.testing.assert_close(x.grad, reference.grad)


@pytest.mark.parametrize("config", [*CONFIGS, BARLOW_WITH_HEAD], ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(2, 8))
def test_order_of_the_pairs_changes_nothing(config: Any, seed: int, num_rows: int) -> None:
    loss, (first, second) = made(config, 2), drawn(num_rows, seed)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        total(loss, first[order], second[order]), total(loss, first, second), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(2, 8))
def test_exchange_of_the_modalities_changes_nothing_but_the_parts_names(
    config: Any, seed: int, num_rows: int
) -> None:
    first, second = drawn(num_rows, seed)
    loss = made(config, 2)
    torch.testing.assert_close(total(loss, second, first), total(loss, first, second), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 50))
def test_length_of_the_features_changes_nothing(config: Any, seed: int, scale: float) -> None:
    first, second = drawn(8, seed)
    loss = made(config, 2)
    torch.testing.assert_close(total(loss, scale * first, second), total(loss, first, second), rtol=1e-3, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_barlow_does_not_see_a_shift_or_a_feature_of_its_own_length(seed: int) -> None:
    """Unlike a cosine: it is of batch-normalised features."""
    first, second = drawn(8, seed)
    rng = torch.Generator().manual_seed(seed)
    moved = first * (0.5 + 5 * torch.rand(DIM, generator=rng)) + torch.randn(DIM, generator=rng)
    found, expected = total(made(Barlow()), moved, second), total(made(Barlow()), first, second)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [*CONFIGS, BARLOW_WITH_HEAD], ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(3, 12))
def test_collapse_costs_more_than_alignment(config: Any, seed: int, num_rows: int) -> None:
    """One point for all, against pairs that are equal: corners of a simplex, or of independent features."""
    loss = made(config, 2)
    rows = torch.linalg.qr(torch.randn(64, DIM, generator=torch.Generator().manual_seed(seed)))[0]
    aligned = rows if isinstance(config, Barlow) else F.normalize(torch.eye(num_rows, DIM) - 1 / DIM, dim=-1)
    point = aligned[:1].expand_as(aligned)
    assert total(loss, aligned, aligned) < total(loss, point, point)


@pytest.mark.parametrize("config", [TripletMax(), TripletMax(mining="semi_hard")], ids=str)
def test_at_one_point_the_max_triplet_is_twice_its_margin(config: Any) -> None:
    point = torch.ones(6, DIM)
    assert total(made(config), point, point).item() == pytest.approx(0.4)


@pytest.mark.parametrize("config", [*CONFIGS, BARLOW_WITH_HEAD], ids=str)
@pytest.mark.parametrize("case", ["two", "identical", "zero", "huge", "one feature"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_nan_at_the_edges(config: Any, case: str, dtype: torch.dtype) -> None:
    first, second = drawn(2 if case == "two" else 5)
    if case == "identical":
        first, second = (x[:1].expand_as(x).clone() for x in (first, second))
    elif case == "zero":
        first, second = torch.zeros_like(first), torch.zeros_like(second)
    elif case == "huge":
        first, second = 1e30 * first, -1e30 * second
    elif case == "one feature":
        first, second = (x * (torch.arange(DIM) == 3) for x in (first, second))
    pair = [x.to(dtype).requires_grad_() for x in (first, second)]
    loss = made(config, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = total(loss, *pair)
    assert found.dtype == torch.float32
    torch.autograd.backward(found)
    assert torch.isfinite(found)
    learnt = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in [*pair, *learnt])


@pytest.mark.parametrize("config", [*CONFIGS, BARLOW_WITH_HEAD], ids=str)
def test_scores_are_float32_under_autocast(config: Any) -> None:
    loss, pair = made(config), drawn(7)
    with torch.autocast("cpu", torch.bfloat16):
        found = total(loss, *pair)
    torch.testing.assert_close(found, total(loss, *pair))


@pytest.mark.parametrize("config", [*CONFIGS, BARLOW_WITH_HEAD], ids=str)
def test_restored_objective_goes_on_in_the_same_bytes(config: Any) -> None:
    whole, again = made(config, 2), made(config)
    again.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for seed in range(3):
        pair = drawn(6, seed)
        assert torch.equal(total(again, *pair), total(whole, *pair))
        for loss in (whole, again):
            loss.stepped(nn.Identity())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_stream_of_one_modality_is_refused(config: Any) -> None:
    batch = Batch(pair=("image",), inputs={"image": Tokens(torch.zeros(3, 1, 1))})
    with pytest.raises(ConfigError, match=r"stream image is of one modality.*image-text"):
        made(config)(batch, Forward(Said(*drawn(3)), batch))


def test_max_triplet_moves_from_the_sum_to_the_max() -> None:
    pair = drawn(8)
    found = [total(made(TripletMax(anneal_steps=4), num_steps), *pair).item() for num_steps in range(7)]
    assert found[0] == pytest.approx(total(made(TripletSum()), *pair).item())
    assert found[4:] == pytest.approx([total(made(TripletMax()), *pair).item()] * 3)
    steps = [later - earlier for earlier, later in itertools.pairwise(found[:5])]
    assert steps == pytest.approx([steps[0]] * 4, rel=1e-4)


def test_triplets_are_zero_once_every_margin_is_kept() -> None:
    for config in (TripletSum(margin=1.0), TripletMax(margin=1.0), TripletMax(margin=1.0, mining="semi_hard")):
        assert total(made(config), torch.eye(6), torch.eye(6)).item() == 0


def test_smooth_loss_of_aligned_pairs_is_negative_and_at_least_its_bound() -> None:
    aligned = torch.eye(6)
    found = total(made(SimClrSmooth()), aligned, aligned).item()
    assert 2 * math.log(5) - 4 / 0.07 <= found < 0


def test_siglip_learns_its_scale_and_bias() -> None:
    loss = made(SigLip())
    torch.autograd.backward(total(loss, *drawn(6)))
    assert {name for name, p in loss.named_parameters() if p.grad is not None} == {"log_scale", "bias"}
    assert not any(p.requires_grad for p in made(SigLip(learnable=False)).parameters())


def test_barlow_projector_has_batch_normalisation_between_its_layers_alone() -> None:
    loss = made(BARLOW_WITH_HEAD)
    kinds = [type(layer).__name__ for layer in loss.get_submodule("head").children()]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    torch.autograd.backward(total(loss, *drawn(6)))
    assert all(p.grad is not None for p in loss.parameters())
    assert not list(loss.buffers())


def test_parts_are_named_after_directions_or_after_what_they_say() -> None:
    named = {type(config): set(parts(made(config), *drawn(4))) for config in CONFIGS}
    both = {"image-to-text", "text-to-image"}
    assert named == {
        TripletSum: both,
        TripletMax: both,
        SimClrSmooth: both,
        SigLip: {"matched", "mismatched"},
        Barlow: {"invariance", "redundancy"},
    }
