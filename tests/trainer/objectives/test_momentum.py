"""Momentum copies follow exactly, and go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.batch import Batch, Forward, Tokens
from trainer.objectives.loss import Context
from trainer.objectives.momentum import MomentumCopy, MomentumHead


class Student(nn.Module):
    """One layer, a constant that was measured, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("deviation", torch.tensor([1.0, torch.inf, 2.0]))
        self.num_passes = 0

    def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
        self.num_passes += 1
        assert isinstance(self.deviation, Tensor)
        return {f"{m}/features": self.layer(t.values[:, 0] / self.deviation) for m, t in inputs.items()}


def moved(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


def batch() -> Batch:
    tokens = Tokens(torch.ones(2, 1, 3))
    return Batch(pair=("image",), inputs={"image": tokens}, others={"image": Tokens(2 * tokens.values)})


def test_copy_is_the_moving_average_of_the_module_and_has_no_gradient() -> None:
    student = Student()
    copy, expected = MomentumCopy(student, 0.9), student.layer.weight.detach().double().clone()
    for _ in range(5):
        moved(student, 0.1)
        copy.follow(student)
        expected = 0.9 * expected + 0.1 * student.layer.weight.detach().double()
    assert isinstance(copy.module, Student)
    torch.testing.assert_close(copy.module.layer.weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_copy_takes_over_constants_even_infinite_ones() -> None:
    student = Student()
    copy = MomentumCopy(student, 0.9)
    copy.follow(student)
    assert isinstance(copy.module, Student)
    assert torch.equal(copy.module.deviation, student.deviation)


def test_copy_that_was_restored_goes_on_with_the_same_bytes() -> None:
    torch.manual_seed(0)
    student = Student()
    copy = MomentumCopy(student, 0.9)
    moved(student, 0.1)
    copy.follow(student)
    restored = MomentumCopy(Student(), 0.9)
    restored.load_state_dict(copy.state_dict())
    moved(student, 0.1)
    for one in (copy, restored):
        one.follow(student)
    assert all(torch.equal(one, other) for one, other in zip(copy.parameters(), restored.parameters(), strict=True))


def test_objectives_share_the_copy_of_a_momentum_and_it_moves_and_passes_once() -> None:
    student = Student()
    context = Context(student=student, width=3, embedding_dim=3)
    first, second, third = (context.student_copy(momentum) for momentum in (0.9, 0.9, 0.5))
    assert (first.owned is None, second.owned is None, third.owned is None) == (False, True, False)
    assert len(second.state_dict()) == 0
    forward = Forward(student, batch())
    assert first.passed(forward) is second.passed(forward)
    assert first.passed(forward) is not third.passed(forward)
    moved(student, 1.0)
    before = [parameter.clone() for parameter in first.parameters()]
    for copy in (first, second, third):
        copy.follow(student)
    assert first.owned is not None
    for now, then in zip(first.parameters(), before, strict=True):
        torch.testing.assert_close(now, then + 0.1)


def test_pass_of_a_copy_has_no_gradient_and_may_show_the_others() -> None:
    student = Student()
    copy = Context(student=student, width=3, embedding_dim=3).student_copy(0.9)
    forward = Forward(student, batch())
    shown, others = copy.passed(forward), copy.passed(forward, other=True)
    assert forward.main["image/features"].requires_grad
    assert not shown["image/features"].requires_grad
    assert torch.equal(shown["image/features"], forward.main["image/features"])
    assert not torch.equal(shown["image/features"], others["image/features"])


def test_head_and_its_copy_agree_until_the_head_moves() -> None:
    head, features = MomentumHead(nn.Linear(3, 5), 0.9), torch.randn(4, 3)
    assert torch.equal(head.query(features), head.key(features))
    torch.testing.assert_close(head.key(features).norm(dim=-1), torch.ones(4))
    moved(head.head, 0.5)
    before = head.key(features)
    assert not torch.equal(head.query(features), before)
    head.follow()
    assert not torch.equal(head.key(features), before)
