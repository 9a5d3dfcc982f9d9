"""Queues wrap around, wait for the step, and go on as if nothing had happened."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.queue import Queue


def test_queue_begins_with_unit_vectors() -> None:
    torch.testing.assert_close(Queue.of_units(8, 5).rows.norm(dim=-1), torch.ones(8))


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers)[:, None].repeat(1, 2).float()


def written(queue: Queue, *notes: Tensor) -> list[int]:
    for note in notes:
        queue.note(note)
    queue.write()
    return [int(number) for number in queue.rows[:, 0]]


def test_queue_wraps_around_and_drops_the_oldest() -> None:
    queue = Queue(torch.zeros(5, 2))
    assert written(queue, rows(1, 2, 3)) == [1, 2, 3, 0, 0]
    assert written(queue, rows(4, 5, 6)) == [6, 2, 3, 4, 5]
    assert written(queue, rows(7)) == [6, 7, 3, 4, 5]


def test_queue_keeps_the_last_of_more_than_it_holds() -> None:
    queue = Queue(torch.zeros(3, 2))
    assert written(queue, rows(1)) == [1, 0, 0]
    assert sorted(written(queue, rows(2, 3, 4, 5, 6))) == [4, 5, 6]


def test_what_is_noted_waits_for_the_step_and_several_batches_keep_their_order() -> None:
    queue = Queue(torch.zeros(4, 2))
    queue.note(rows(1, 2))
    assert queue.rows.sum() == 0
    assert written(queue, rows(3)) == [1, 2, 3, 0]
    assert written(queue) == [1, 2, 3, 0]


def test_queue_that_was_restored_goes_on_with_the_same_bytes() -> None:
    queue = Queue.of_units(5, 2)
    written(queue, rows(1, 2, 3))
    restored = Queue.of_units(5, 2)
    restored.load_state_dict(queue.state_dict())
    for one in (queue, restored):
        written(one, rows(4, 5, 6))
    assert torch.equal(queue.rows, restored.rows)
    assert torch.equal(queue.place, restored.place)
