"""AVID and CMA against loops in float64 from their formulas; their banks, draws and positives; edges and state."""

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
from trainer.objectives import agreement, banks
from trainer.objectives.agreement import agreeing
from trainer.objectives.avid import Avid
from trainer.objectives.banks import Banks, Nce, drawn_among, scores
from trainer.objectives.cma import Cma
from trainer.objectives.loss import Context

WIDTH = 8
CONTEXT = Context(student=nn.Identity(), width=WIDTH, embedding_dim=WIDTH, num_places=60)
PEERS = range(10, 60)  # a stream that isn't the first
FEW = Cma(top_k=6, num_positives=3, num_negatives=9)
WAYS = {
    "cross": {"image-to-audio": (0, 1), "audio-to-image": (1, 0)},
    "within": {"image-to-image": (0, 0), "audio-to-audio": (1, 1)},
}
WAYS["joint"] = WAYS["cross"] | WAYS["within"]


class Fixed(nn.Module):
    """A student whose embeddings are given."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, inputs: Mapping[str, Tokens]) -> Mapping[str, Tensor]:
        return {
            f"{modality}/embedding": one for modality, one in zip(("image", "audio"), self.embeddings, strict=True)
        }


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def parts(objective: Any, embeddings: Tensor, places: Tensor, peers: range = PEERS) -> dict[str, Tensor]:
    tokens = Tokens(torch.zeros(len(places), 1, 1))
    batch = Batch(pair=("image", "audio"), inputs={"image": tokens, "audio": tokens}, places=places, peers=peers)
    found: dict[str, Tensor] = objective(batch, Forward(Fixed(embeddings), batch))
    return found


def total(objective: Any, embeddings: Tensor, places: Tensor, peers: range = PEERS) -> Tensor:
    return torch.stack(list(parts(objective, embeddings, places, peers).values())).sum()


def seen(objective: Any, embeddings: Tensor, places: Tensor, peers: range = PEERS) -> None:
    """A step without the optimizer's."""
    parts(objective, embeddings, places, peers)
    objective.stepped(nn.Identity())


def warmed(config: Any, seed: int = 0) -> Any:
    """An objective that has seen each item of PEERS once."""
    objective = config.build(CONTEXT)
    if isinstance(config, Cma):
        objective.num_seen.fill_(CONTEXT.num_places)
    seen(objective, unit(2, len(PEERS), WIDTH, seed=seed), torch.tensor(PEERS))
    return objective


def loop_nce(loss: str, own: list[Tensor], others: list[Tensor], mean: float) -> Tensor:
    """Of one item: the mean over its positives' scores."""
    noise = len(others) * mean
    values = []
    for score in own:
        if loss == "infonce":
            values.append(-(score.exp() / (score.exp() + sum(other.exp() for other in others))).log())
        else:
            value = -(score.exp() / (score.exp() + noise)).log()
            values.append(value - sum((noise / (other.exp() + noise)).log() for other in others))
    return torch.stack(values).mean()


def mean_score(rows: list[tuple[Tensor, list[Tensor]]]) -> float:
    """Z of (scores of positives, scores of negatives)."""
    found = [other.exp() for _, others in rows for other in others]
    return float(torch.stack(found).detach().mean())


@pytest.mark.parametrize("variant", ["cross", "within", "joint"])
@pytest.mark.parametrize("loss", ["binary", "infonce"])
def test_avid_and_its_gradient_equal_a_loop_over_the_formula(variant: Any, loss: Any) -> None:
    objective = Avid(variant=variant, loss=loss, num_negatives=12).build(CONTEXT)
    memory = objective.banks.vectors.double()
    places = torch.tensor([10, 33, 59, 12])
    torch.manual_seed(7)
    draws = torch.randint(len(PEERS) - 1, (4, 12))
    first_mean = math.nan
    for seed in (1, 2):  # Z stays that of the first
        embeddings = unit(2, 4, WIDTH, seed=seed).requires_grad_()
        double = embeddings.detach().double().requires_grad_()
        rows = {}
        for name, (one, other) in WAYS[variant].items():
            for i, place in enumerate(places.tolist()):
                rest = [row for row in PEERS if row != place]
                queries = double[one, i] / 0.07
                own = [queries @ memory[other, place]]
                rows[name, i] = own, [queries @ memory[other, rest[draw]] for draw in draws[i].tolist()]
        if seed == 1:
            first_mean = mean_score(list(rows.values()))
        torch.manual_seed(7)
        found = parts(objective, embeddings, places)
        assert found.keys() == WAYS[variant].keys()
        expected = {name: sum(loop_nce(loss, *rows[name, i], first_mean) for i in range(4)) / 4 for name in found}
        for name, value in found.items():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        torch.autograd.backward([*found.values(), *expected.values()])
        assert embeddings.grad is not None
        assert double.grad is not None
        torch.testing.assert_close(embeddings.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["binary", "infonce"])
def test_cma_and_its_gradient_equal_a_loop_over_the_formula(loss: Any) -> None:
    objective = warmed(Cma(loss=loss, top_k=6, num_positives=3, num_negatives=9))
    memory = objective.banks.vectors.double()
    places = torch.tensor([11, 40, 58])
    embeddings = unit(2, 3, WIDTH, seed=1).requires_grad_()
    double = embeddings.detach().double().requires_grad_()
    torch.manual_seed(7)
    orders, draws = torch.rand(3, 6).argsort(1), torch.randint(len(PEERS) - 7, (3, 9))
    rows: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
    for i, place in enumerate(places.tolist()):
        agreements = (memory @ memory[:, place, :, None]).squeeze(-1).amin(0)
        ranked = sorted(set(PEERS) - {place}, key=lambda row: -float(agreements[row]))
        positives = sorted(ranked[:6])
        chosen = [positives[number] for number in orders[i, :3].tolist()]
        rest = [row for row in PEERS if row != place and row not in positives]
        for one in (0, 1):
            logits = memory[one] @ double[one, i] / 0.07
            rows[one, i] = [logits[row] for row in chosen], [logits[rest[draw]] for draw in draws[i].tolist()]
    mean = mean_score(list(rows.values()))
    expected = [sum(loop_nce(loss, *rows[one, i], mean) for i in range(3)) / 3 for one in (0, 1)]
    torch.manual_seed(7)
    found = parts(objective, embeddings, places)
    assert list(found) == ["image-to-image", "audio-to-audio"]
    torch.testing.assert_close(torch.stack(list(found.values())).double(), torch.stack(expected))
    torch.autograd.backward([*found.values(), *expected])
    assert embeddings.grad is not None
    assert double.grad is not None
    torch.testing.assert_close(embeddings.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


def test_banks_move_half_way_and_stay_unit_vectors_after_the_step_alone() -> None:
    objective = Avid(momentum=0.5).build(CONTEXT)
    before = objective.banks.vectors.clone()
    places, embeddings = torch.tensor([20, 11]), unit(2, 2, WIDTH, seed=1).requires_grad_()
    parts(objective, embeddings, places)
    assert torch.equal(objective.banks.vectors, before)
    objective.stepped(nn.Identity())
    moved = before.clone()
    for side in (0, 1):
        for i, place in enumerate(places.tolist()):
            mixed = 0.5 * before[side, place].double() + 0.5 * embeddings[side, i].detach().double()
            moved[side, place] = (mixed / mixed.norm()).float()
    torch.testing.assert_close(objective.banks.vectors, moved)
    assert not objective.banks.vectors.requires_grad


def test_what_was_noted_is_written_once_and_in_order() -> None:
    memory = Banks(torch.zeros(2, 4, 3), momentum=0.5)
    first, second = unit(2, 1, 3, seed=1), unit(2, 1, 3, seed=2)
    memory.note(torch.tensor([2]), first)
    memory.note(torch.tensor([2]), second)
    assert memory.write() == 2
    torch.testing.assert_close(memory.vectors[:, 2:3], F.normalize(first + second, dim=-1))
    assert memory.write() == 0


@pytest.mark.parametrize("config", [Avid(loss="infonce", num_negatives=16), FEW], ids=["avid", "cma"])
def test_a_step_of_two_batches_has_the_loss_and_leaves_the_banks_of_a_larger_one(config: Any) -> None:
    places, embeddings = torch.tensor([10, 30, 50, 20]), unit(2, 4, WIDTH, seed=1)
    torch.manual_seed(1)
    whole = warmed(config)
    torch.manual_seed(1)
    halved = warmed(config)
    torch.manual_seed(2)
    expected = total(whole, embeddings, places)
    torch.manual_seed(2)
    found = [total(halved, embeddings[:, half], places[half]) for half in (slice(0, 2), slice(2, 4))]
    if isinstance(config, Avid):  # cma draws positives, then negatives, for each batch
        torch.testing.assert_close(torch.stack(found).mean(), expected)
    for objective in (whole, halved):
        objective.stepped(nn.Identity())
    assert torch.equal(whole.banks.vectors, halved.banks.vectors)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.data())
def test_draws_are_of_all_that_is_left_and_of_nothing_else(num_rows: int, data: st.DataObject) -> None:
    num_out = data.draw(st.integers(0, num_rows - 1))
    out = data.draw(st.permutations(range(num_rows)))[:num_out]
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    found = drawn_among(num_rows, torch.tensor([sorted(out)] * 2, dtype=torch.int64), 1000)
    assert found.shape == (2, 1000)
    assert set(found.flatten().tolist()) == set(range(num_rows)) - set(out)


def test_draws_are_even() -> None:
    torch.manual_seed(0)
    counts = drawn_among(10, torch.tensor([[3, 4]]), 80_000)[0].bincount(minlength=10)
    assert counts[3] == counts[4] == 0
    assert (counts[counts > 0] - 10_000).abs().max() < 500


def test_scores_are_the_same_however_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = unit(4, WIDTH), unit(30, WIDTH, seed=1)
    rows = torch.randint(30, (4, 7), generator=torch.Generator().manual_seed(2))
    expected = scores(queries, bank, rows)
    monkeypatch.setattr(banks, "ROWS_PER_DRAW", 0)
    torch.testing.assert_close(scores(queries, bank, rows), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from(["random", "tied", "opposed"]), st.data())
def test_agreeing_is_what_a_search_through_all_pairs_finds(
    seed: int, num_rows: int, kind: str, data: st.DataObject
) -> None:
    vectors = unit(2, num_rows, 5, seed=seed)
    if kind == "tied":
        vectors = vectors[:, torch.arange(num_rows) % 3]
    if kind == "opposed":  # what one modality finds alike, the other does not
        vectors[1] = -vectors[0]
    num = data.draw(st.integers(1, num_rows - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "BLOCK", data.draw(st.sampled_from([1, 3 * num_rows, 1 << 24])))
        found = agreeing(vectors, num)
    for i in range(num_rows):
        rho = [min(float(v[i] @ v[j]) for v in vectors.double()) for j in range(num_rows)]
        best = sorted((rho[j] for j in range(num_rows) if j != i), reverse=True)[:num]
        assert i not in found[i]
        assert len(set(found[i].tolist())) == num
        assert sorted((rho[j] for j in found[i].tolist()), reverse=True) == pytest.approx(best, abs=1e-5)


def test_the_best_of_a_minimum_are_found_below_both_lists() -> None:
    """Item 0's first ten are unlike it in one modality; what agrees best is eleventh in both."""
    angles = torch.full((2, 22), 1.5)
    angles[:, 0] = 0
    angles[0, 1:11], angles[1, 11:21] = 0.1, 0.1
    angles[:, 21] = 0.5
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert agreeing(vectors, 1)[0].tolist() == [21]


def test_positives_are_found_among_the_items_seen_of_the_same_stream_once_each_could_have_been() -> None:
    objective = Cma(top_k=4, num_positives=2).build(CONTEXT)
    for peers, step in ((range(10), 0), (PEERS, 1), (PEERS, 2)):
        places = torch.tensor(peers)[:-2]  # the last two are never seen
        embeddings = unit(2, len(places), WIDTH, seed=step).requires_grad_()
        loss = total(objective, embeddings, places, peers)
        torch.autograd.backward(loss)
        assert embeddings.grad is not None
        assert loss.detach().item() == 0
        assert not embeddings.grad.any()
        assert (objective.positives < 0).all()
        objective.stepped(nn.Identity())
    for peers in (range(10), PEERS):
        own = torch.tensor(peers)[:-2]
        positives = objective.positives[own] + peers.start
        assert (positives[:, 1:] > positives[:, :-1]).all()
        assert set(positives.flatten().tolist()) <= set(own.tolist())
        assert not (positives == own[:, None]).any()
        assert (objective.positives[list(peers)[-2:]] < 0).all()
    assert total(objective, unit(2, 1, WIDTH), torch.tensor([10])) > 0
    assert total(objective, unit(2, 1, WIDTH), torch.tensor([59])) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["binary", "infonce"]))
def test_nce_is_that_of_a_set_of_items_of_positives_and_of_negatives(seed: int, loss: Any) -> None:
    rng = torch.Generator().manual_seed(seed)
    own, others = torch.randn(2, 5, 3, generator=rng), torch.randn(2, 5, 9, generator=rng)
    expected = Nce(loss)(own, others)
    items, positives, negatives = (torch.randperm(size, generator=rng) for size in (5, 3, 9))
    found = Nce(loss)(own[:, items][..., positives], others[:, items][..., negatives])
    torch.testing.assert_close(found, expected[:, items])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([Avid(variant="joint"), Avid(loss="infonce"), FEW]))
def test_a_rotation_changes_nothing_and_an_exchange_of_modalities_exchanges_the_parts(
    seed: int, config: Any
) -> None:
    turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)))[0]
    embeddings, places = unit(2, 4, WIDTH, seed=seed), torch.tensor([10, 20, 30, 59])
    found = []
    for change in (lambda x: x, lambda x: x @ turned, lambda x: x.flip(0)):
        torch.manual_seed(seed)
        objective = warmed(config)
        objective.banks.vectors.copy_(change(unit(2, 60, WIDTH, seed=seed + 1)))
        found.append(list(parts(objective, change(embeddings), places).values()))
    plain, rotated, exchanged = found
    torch.testing.assert_close(rotated, plain, rtol=1e-4, atol=1e-4)
    swapped = [plain[number] for pair in range(0, len(plain), 2) for number in (pair + 1, pair)]
    torch.testing.assert_close(exchanged, swapped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["binary", "infonce"])
@pytest.mark.parametrize("kind", ["avid", "cma"])
def test_a_collapsed_student_is_not_rewarded(kind: str, loss: Any) -> None:
    def of(embeddings: Tensor) -> float:
        config: Any = Avid(loss=loss) if kind == "avid" else Cma(loss=loss, top_k=4, num_positives=2)
        objective = config.build(context)
        if loss == "binary":
            objective.nce.is_known.fill_(1)
        for _ in range(8):
            seen(objective, embeddings, places, peers)
        return float(total(objective, embeddings, places, peers))

    peers, places = range(40), torch.arange(40)
    context = Context(student=nn.Identity(), width=WIDTH, embedding_dim=WIDTH, num_places=40)
    apart = unit(40, WIDTH, seed=1) if kind == "avid" else torch.eye(WIDTH)[torch.arange(40) // 5]
    assert of(torch.stack([apart, apart])) < of(unit(1, 1, WIDTH).expand(2, 40, WIDTH))


EDGES: list[Any] = [
    Avid(variant="joint"),
    Avid(temperature=1e-4),
    Avid(loss="infonce", temperature=1e-4),
    Cma(top_k=1, num_positives=1),
    Cma(top_k=1, num_positives=1, loss="infonce", temperature=1e-4),
]


@pytest.mark.parametrize("config", EDGES, ids=str)
@pytest.mark.parametrize("case", ["identical", "zero", "opposite"])
@pytest.mark.parametrize("num_rows", [2, 5])
def test_no_nan_at_the_edges(config: Any, case: str, num_rows: int) -> None:
    embeddings = unit(1, 1, WIDTH).repeat(2, num_rows, 1)
    embeddings = {"identical": embeddings, "zero": 0 * embeddings, "opposite": embeddings}[case]
    if case == "opposite":
        embeddings[1] *= -1
    peers = range(num_rows if isinstance(config, Avid) else max(num_rows, 3))
    objective = config.build(
        Context(student=nn.Identity(), width=WIDTH, embedding_dim=WIDTH, num_places=len(peers))
    )
    for sign in (1, -1, 1):
        leaf = (sign * embeddings).requires_grad_()
        loss = total(objective, leaf, torch.arange(num_rows), peers)
        torch.autograd.backward(loss)
        assert leaf.grad is not None
        assert torch.isfinite(loss)
        assert torch.isfinite(leaf.grad).all()
        objective.stepped(nn.Identity())
        assert torch.isfinite(objective.banks.vectors).all()


@pytest.mark.parametrize("config", [Avid(), FEW], ids=["avid", "cma"])
def test_scores_and_banks_are_float32_under_autocast(config: Any) -> None:
    places, embeddings, found = torch.tensor([10, 20, 30]), unit(2, 3, WIDTH, seed=1), []
    for enabled in (True, False):
        torch.manual_seed(0)
        objective = warmed(config)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(total(objective, embeddings, places))
    assert found[0].dtype == objective.banks.vectors.dtype == torch.float32
    assert torch.equal(*found)


@pytest.mark.parametrize("config", [Avid(num_negatives=16), FEW], ids=["avid", "cma"])
def test_a_restored_objective_goes_on_to_the_same_bytes(config: Any) -> None:
    torch.manual_seed(0)
    objective = warmed(config)
    for step in range(8):
        if step == 2:
            kept, state = {k: v.clone() for k, v in objective.state_dict().items()}, torch.get_rng_state()
        last = total(objective, unit(2, 20, WIDTH, seed=step), torch.arange(20) + 11 + step)
        objective.stepped(nn.Identity())
    other = config.build(CONTEXT)
    other.load_state_dict(kept)
    torch.set_rng_state(state)
    for step in range(2, 8):
        again = total(other, unit(2, 20, WIDTH, seed=step), torch.arange(20) + 11 + step)
        other.stepped(nn.Identity())
    assert torch.equal(again, last)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in objective.state_dict().items())


def test_settings_that_leave_nothing_to_draw_are_refused() -> None:
    with pytest.raises(ConfigError, match="can't draw num_positives 8 of top_k 4"):
        Cma(top_k=4).build(CONTEXT)
    objective = Cma(top_k=9, num_positives=1).build(CONTEXT)
    with pytest.raises(ConfigError, match="top_k 9 of 10 items leaves no negatives"):
        parts(objective, unit(2, 2, WIDTH), torch.tensor([0, 1]), range(10))


@pytest.mark.parametrize("config", [Avid(), FEW], ids=["avid", "cma"])
def test_a_stream_of_one_modality_is_refused(config: Any) -> None:
    batch = Batch(
        pair=("image",), inputs={"image": Tokens(torch.zeros(2, 1, 1))}, places=torch.tensor([10, 11]), peers=PEERS
    )
    with pytest.raises(ConfigError, match="compares two"):
        config.build(CONTEXT)(batch, Forward(Fixed(unit(2, 2, WIDTH)), batch))
