"""Objectives with momentum copies (CODIS, MCT) against slow float64 loops, and at the edges."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.align import Align
from trainer.objectives.codebook import Codebook, CodebookLoss
from trainer.objectives.inter_margin import InterMargin
from trainer.objectives.loss import Context, Loss
from trainer.objectives.moco import Moco
from trainer.students.layers import unit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the escapes in its docstrings, when Python compiles them
    import ot

BOTH = ("image", "text")
WIDTH, DIM, NUM_CLASSES, NUM_PLACES = 5, 8, 4, 40
CONFIGS: list[Any] = [
    Align(queue_size=6, ramp_steps=2),
    Codebook(num_codes=7),
    Codebook(num_codes=3, plan="ipot"),
    Moco(queue_size=6, head_dim=3),
    Moco(queue_size=6, head_dim=3, tags="labels"),
    Moco(queue_size=6, head_dim=3, tags="target", epsilon=0.8),
    InterMargin(queue_size=6, head_dim=9),
    InterMargin(queue_size=6, head_dim=9, negatives="mean", margin=0.5),
    InterMargin(queue_size=6, head_dim=None),
]


class Towers(nn.Module):
    """A linear map for each modality."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({modality: nn.Linear(WIDTH, DIM) for modality in BOTH})

    def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
        named = {}
        for modality, tokens in inputs.items():
            features = self.towers[modality](tokens.values[:, 0])
            named |= {f"{modality}/features": features, f"{modality}/embedding": unit(features)}
        return named


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(num_rows: int = 5, *, seed: int = 0, pair: tuple[str, ...] = BOTH) -> Batch:
    return Batch(
        pair=pair,
        inputs={m: Tokens(drawn(num_rows, 1, WIDTH, seed=seed + n)) for n, m in enumerate(pair)},
        others={m: Tokens(drawn(num_rows, 1, WIDTH, seed=seed + 10 + n)) for n, m in enumerate(pair)},
        targets={"logits": 2 * drawn(num_rows, NUM_CLASSES, seed=seed + 20)},
        places=torch.randperm(NUM_PLACES, generator=torch.Generator().manual_seed(seed))[:num_rows],
    )


def built(config: Any, student: nn.Module) -> Loss:
    labels = torch.arange(NUM_PLACES) % 3 - 1  # a third of the items has none
    loss: Loss = config.build(
        Context(
            student=student,
            width=WIDTH,
            embedding_dim=DIM,
            modalities=BOTH,
            targets={"logits": (NUM_CLASSES,)},
            num_places=NUM_PLACES,
            labels=labels,
        )
    )
    return loss


def lived(config: Any) -> tuple[Towers, Loss]:
    """A student and an objective that have some steps behind them: no two things in them are alike by chance."""
    torch.manual_seed(0)
    student = Towers()
    loss = built(config, student)
    for step in range(2):
        shown = batch(4, seed=100 * step + 1)
        loss(shown, Forward(student, shown))
        with torch.no_grad():
            for parameter in [*student.parameters(), *loss.parameters()]:
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        loss.stepped(student)
    return student, loss


def total(loss: Loss, student: nn.Module, shown: Batch) -> Tensor:
    return torch.stack(list(loss(shown, Forward(student, shown)).values())).sum()


def softmax_entropy(target: Tensor, scores: Tensor) -> Tensor:
    """CE(target, softmax(scores)) of vectors."""
    return -(target * (scores - scores.exp().sum().log())).sum()


def passed(student: Any, sides: Mapping[str, Tokens], what: str) -> dict[str, Tensor]:
    named = student({modality: Tokens(tokens.values.double()) for modality, tokens in sides.items()})
    return {modality: named[f"{modality}/{what}"].double() for modality in sides}


def loop_align(config: Align, loss: Any, student: nn.Module, shown: Batch) -> Tensor:
    fast = passed(student, shown.inputs, "embedding")
    slow = passed(loss.copy.owned.module, shown.inputs, "embedding")
    alpha = config.alpha * min(1, int(loss.num_steps) / config.ramp_steps)
    value = torch.zeros((), dtype=torch.float64)
    for source in BOTH:
        for target in BOTH:
            keys = [*slow[target], *loss.queues[target].rows]
            for i in range(shown.num_rows):
                scores = torch.stack([fast[source][i] @ key for key in keys]) / config.temperature
                taught = torch.stack([slow[source][i] @ key for key in keys]) / config.temperature
                wanted = alpha * taught.exp() / taught.exp().sum()
                wanted[i] += 1 - alpha
                value = value + softmax_entropy(wanted.detach(), scores) / shown.num_rows
    return value


def loop_codebook(config: Codebook, loss: Any, student: nn.Module, shown: Batch) -> Tensor:
    fast = passed(student, shown.inputs, "embedding")
    slow = passed(loss.copy.owned.module, shown.inputs, "embedding")
    codes = [code / code.norm() for code in loss.codes]
    value = torch.zeros((), dtype=torch.float64)
    for one, other in (BOTH, BOTH[::-1]):
        cost = torch.stack([torch.stack([1 - z.detach() @ code for code in codes]) for z in slow[one]])
        plan = reference_plan(config, cost.detach())
        value = value + (plan * cost).sum()
        for z, wanted in zip(fast[other], len(plan) * plan, strict=True):
            scores = torch.stack([z @ code for code in codes]) / config.temperature
            value = value + softmax_entropy(wanted, scores) / len(plan)
    return value


def reference_plan(config: Codebook, cost: Tensor) -> Tensor:
    rows, columns = (torch.full((size,), 1 / size, dtype=torch.float64) for size in cost.shape)
    if config.plan == "sinkhorn":
        arrays = [tensor.numpy() for tensor in (rows, columns, cost)]
        return torch.from_numpy(
            ot.sinkhorn(*arrays, config.epsilon, method="sinkhorn_log", numItermax=2000, stopThr=1e-10)
        )
    plan, scale = torch.outer(rows, columns), torch.ones(len(rows), 1, dtype=torch.float64)
    for _ in range(config.num_iterations):
        step = (-cost / config.epsilon).exp() * plan
        of_columns = columns / (scale * step).sum(0)
        scale = (rows / (step * of_columns).sum(1))[:, None]
        plan = scale * step * of_columns
    return plan


def loop_moco(config: Moco, loss: Any, student: nn.Module, shown: Batch) -> Tensor:
    fast = passed(student, shown.inputs, "features")
    slow = passed(loss.copy.owned.module, shown.others, "features")
    tags = tag_vectors(config, loss, shown)
    value = torch.zeros((), dtype=torch.float64)
    for modality in BOTH:
        contrast = loss.contrasts[modality]
        queries = contrast.head.head(fast[modality])
        own_keys = contrast.head.copy.module(slow[modality]).detach()
        for i in range(shown.num_rows):
            keys = [own_keys[i] / own_keys[i].norm(), *contrast.keys.rows]
            scores = torch.stack([queries[i] / queries[i].norm() @ key for key in keys]) / config.temperature
            positives = [0]
            if modality == "image":
                likes = [float(tags[i] @ tag.double()) for tag in contrast.tags.rows]
                positives += [1 + j for j, like in enumerate(likes) if like > config.epsilon]
            terms = [(scores[p].exp() / scores.exp().sum()).log() for p in positives]
            value = value - torch.stack(terms).mean() / shown.num_rows
    return value


def tag_vectors(config: Moco, loss: Any, shown: Batch) -> list[Tensor]:
    if config.tags is None:
        return [torch.zeros(0, dtype=torch.float64)] * shown.num_rows
    if config.tags == "labels":
        numbers = [int(place) % 3 - 1 for place in shown.places]
        return [torch.tensor([number == 0, number == 1]).double() for number in numbers]
    shares = [row.double().softmax(-1) for row in shown.targets["logits"]]
    return [share / share.norm() for share in shares]


def loop_inter_margin(config: InterMargin, loss: Any, student: nn.Module, shown: Batch) -> Tensor:
    fast = passed(student, shown.inputs, "features")
    slow = passed(loss.copy.owned.module, shown.others, "features")
    value = torch.zeros((), dtype=torch.float64)
    for source, target in (BOTH, BOTH[::-1]):
        queries = loss.head.head(fast[source])
        keys = loss.head.copy.module(slow[target]).detach()
        rows = loss.keys[target].rows
        for query, key in zip(queries, keys, strict=True):
            q, k = query / query.norm(), key / key.norm()
            for older in rows:
                excess = (config.margin - q @ k + q @ older).clamp(min=0)
                value = value + excess / shown.num_rows / (len(rows) if config.negatives == "mean" else 1)
    return value


REFERENCES: dict[type, Callable[..., Tensor]] = {
    Align: loop_align,
    Codebook: loop_codebook,
    Moco: loop_moco,
    InterMargin: loop_inter_margin,
}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("num_rows", [2, 5])
def test_objective_and_its_gradient_equal_a_float64_reference(config: Any, num_rows: int) -> None:
    student, loss = lived(replace(config, num_iterations=400) if config == CONFIGS[1] else config)
    shown = batch(num_rows, seed=7)
    double_student, double_loss = deepcopy(student).double(), doubled(loss)
    found = total(loss, student, shown)
    expected = REFERENCES[type(config)](loss.config, double_loss, double_student, shown)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.autograd.backward([found, expected])
    for module, double in ((student, double_student), (loss, double_loss)):
        for (name, one), other in zip(module.named_parameters(), double.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None and other.grad is not None:
                torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-3, atol=1e-5)


def doubled(loss: Loss) -> Loss:
    """Its copies lie outside the modules' tree as well."""
    copy = deepcopy(loss).double()
    assert isinstance(copy, Loss)
    return copy


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_restored_objective_goes_on_with_the_same_bytes(config: Any) -> None:
    student, loss = lived(config)
    torch.manual_seed(1)
    restored_student = Towers()
    restored = built(config, restored_student)
    restored_student.load_state_dict(student.state_dict())
    restored.load_state_dict(loss.state_dict())
    for step in range(3):
        shown = batch(4, seed=50 + step)
        values = [total(loss, student, shown), total(restored, restored_student, shown)]
        assert torch.equal(*values)
        for one, its in ((loss, student), (restored, restored_student)):
            one.stepped(its)
    kept = [one.state_dict() for one in (loss, restored)]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_all_batches_of_a_step_meet_the_same_state(config: Any) -> None:
    student, loss = lived(config)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    first, again = (total(loss, student, batch(4, seed=5)) for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    loss.stepped(student)
    assert any(not torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@given(seed=st.integers(0, 99), order=st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_order_within_a_batch_does_not_matter(config: Any, seed: int, order: list[int]) -> None:
    student, loss = lived(config)
    shown = batch(seed=seed)
    mixed = replace(
        shown,
        inputs={m: Tokens(tokens.values[order]) for m, tokens in shown.inputs.items()},
        others={m: Tokens(tokens.values[order]) for m, tokens in shown.others.items()},
        targets={"logits": shown.targets["logits"][order]},
        places=shown.places[order],
    )
    torch.testing.assert_close(total(loss, student, mixed), total(loss, student, shown), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("case", ["identical", "zero", "huge"])
def test_no_nan_at_the_edges(config: Any, case: str) -> None:
    student, loss = lived(config)
    shown = batch(2)
    with torch.no_grad():
        for tower in student.towers.values():
            assert isinstance(tower, nn.Linear)
            tower.weight.mul_({"identical": 0.0, "zero": 0.0, "huge": 1e15}[case])
            tower.bias.mul_({"identical": 1.0, "zero": 0.0, "huge": 1e15}[case])
    targets = {"logits": torch.tensor([[1e30, 0, 0, -1e30]] * 2 if case == "huge" else [[0.0] * 4] * 2)}
    for _ in range(2):  # the second meets what the first has left behind
        value = total(loss, student, replace(shown, targets=targets))
        torch.autograd.backward(value)
        loss.stepped(student)
        assert torch.isfinite(value)
    learned = [*student.parameters(), *loss.parameters()]
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in learned)
    assert all(torch.isfinite(value).all() for value in loss.state_dict().values())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_scores_are_float32_under_autocast(config: Any) -> None:
    class Still(Towers):
        def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
            with torch.autocast("cpu", enabled=False):
                return super().forward(inputs)

    torch.manual_seed(0)
    student = Still()
    loss, shown = built(config, student), batch()
    expected = total(loss, student, shown)
    with torch.autocast("cpu", torch.bfloat16):
        found = total(loss, student, shown)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


class Given(nn.Module):
    """A student whose features are its inputs."""

    def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
        features = {modality: tokens.values[:, 0] for modality, tokens in inputs.items()}
        return {f"{m}/features": x for m, x in features.items()} | {
            f"{m}/embedding": unit(x) for m, x in features.items()
        }


def shown_as(features: Tensor, logits: Tensor) -> Batch:
    """Items of which either modality, and any view, has these features; none has a label."""
    tokens = {modality: Tokens(features[:, None]) for modality in BOTH}
    places = 3 * torch.arange(len(features))
    return Batch(pair=BOTH, inputs=tokens, others=tokens, places=places, targets={"logits": logits})


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_a_collapse_is_not_rewarded(config: Any, seed: int) -> None:
    features = torch.linalg.qr(drawn(DIM, DIM, seed=seed))[0]
    values = []
    for aligned in (features, features[:1].expand_as(features)):
        torch.manual_seed(0)
        loss = built(
            replace(config, **({"queue_size": 4} if hasattr(config, "queue_size") else {"num_codes": 4})), Given()
        )
        if isinstance(loss, CodebookLoss):
            with torch.no_grad():
                loss.codes.copy_(aligned[4:])
        older, shown = shown_as(aligned[:4], torch.zeros(4, 4)), shown_as(aligned[4:], 30 * torch.eye(4))
        total(loss, Given(), older)
        loss.stepped(Given())
        values.append(total(loss, Given(), shown))
    assert values[0] < values[1]


def test_alpha_grows_with_the_steps() -> None:
    student, _ = lived(Align())
    loss, shown = built(Align(ramp_steps=2), student), batch()
    at_first = total(loss, student, shown)
    assert at_first == total(built_like(loss, Align(alpha=0.0), student), student, shown)
    for _ in range(2):
        loss.num_steps += 1
    torch.testing.assert_close(
        total(loss, student, shown),
        total(built_like(loss, Align(alpha=0.4, ramp_steps=1), student, steps=1), student, shown),
    )


def built_like(loss: Loss, config: Any, student: nn.Module, *, steps: int = 0) -> Loss:
    other = built(config, student)
    other.load_state_dict({**loss.state_dict(), "num_steps": torch.tensor(steps)})
    return other


def test_the_copy_and_the_plan_have_no_gradient_and_transport_moves_the_codes_alone() -> None:
    student, loss = lived(Codebook(num_codes=7))
    shown = batch()
    parts = loss(shown, Forward(student, shown))
    assert set(parts) == {"image-code", "text-code", "image-transport", "text-transport"}
    torch.autograd.backward(parts["image-transport"] + parts["text-transport"])
    assert all(parameter.grad is None for parameter in student.parameters())
    assert loss.codes.grad.abs().sum() > 0


def test_image_follows_the_plan_of_its_caption() -> None:
    student, loss = lived(Codebook(num_codes=7))
    shown = batch()
    code = loss(shown, Forward(student, shown))["image-code"]
    torch.autograd.backward(code)
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert gradients["towers.image.weight"] is not None
    assert gradients["towers.text.weight"] is None or gradients["towers.text.weight"].abs().sum() == 0
    other = replace(shown, inputs={**shown.inputs, "text": batch(seed=33).inputs["text"]})
    assert not torch.equal(loss(other, Forward(student, other))["image-code"], code)


def test_parts_of_one_modality_and_of_two() -> None:
    for config, alone, two in (
        (Align(), {"image-to-image"}, {f"{a}-to-{b}" for a in BOTH for b in BOTH}),
        (Codebook(), {"image-code", "image-transport"}, None),
        (Moco(), {"image"}, set(BOTH)),
        (InterMargin(), None, {"image-to-text", "text-to-image"}),
    ):
        student = Towers()
        for shown, expected in ((batch(pair=("image",)), alone), (batch(), two)):
            if expected is not None:
                assert set(built(config, student)(shown, Forward(student, shown))) == expected


def test_margin_between_modalities_needs_two() -> None:
    student, shown = Towers(), batch(pair=("image",))
    with pytest.raises(ConfigError, match="compares two"):
        built(InterMargin(), student)(shown, Forward(student, shown))


def test_tags_that_are_labels_need_some() -> None:
    context = Context(student=Towers(), width=WIDTH, embedding_dim=DIM, labels=torch.full((9,), -1))
    with pytest.raises(ConfigError, match="no anchor a label"):
        Moco(tags="labels").build(context)


def test_tags_that_are_a_target_need_a_vector_for_each_item() -> None:
    context = Context(student=Towers(), width=WIDTH, embedding_dim=DIM, targets={"logits": (3, NUM_CLASSES)})
    with pytest.raises(ConfigError, match=r"shape \[3, 4\]"):
        Moco(tags="target").build(context)


def test_tags_are_those_of_the_anchor_and_without_a_like_key_it_is_infonce() -> None:
    values = {}
    for tags in (None, "labels"):
        student, loss = lived(Moco(queue_size=6, head_dim=3, tags=tags))
        shown = batch()
        values[tags] = loss(shown, Forward(student, shown))
        unlabelled = replace(shown, places=torch.arange(0, 15, 3))
        values[tags, "unlabelled"] = loss(unlabelled, Forward(student, unlabelled))
    torch.testing.assert_close(values["labels"]["text"], values[None]["text"])
    assert (values["labels"]["image"] - values[None]["image"]).abs() > 1e-3
    torch.testing.assert_close(values["labels", "unlabelled"]["image"], values[None, "unlabelled"]["image"])


def test_a_key_is_of_the_other_view() -> None:
    for config in (Moco(), InterMargin()):
        assert config.reads_others
        student, loss = lived(config)
        shown = batch()
        changed = replace(shown, others=batch(seed=77).others)
        assert total(loss, student, shown) != total(loss, student, changed)
