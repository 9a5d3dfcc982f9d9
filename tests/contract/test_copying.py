import os
import threading

import pytest

from contract import copying


def test_shares_are_everything_once_and_in_order() -> None:
    for number in (0, 1, 2, 3, 7, 256):
        found = [place for part in copying.shares(number) for place in range(number)[part]]
        assert found == list(range(number))


def test_every_part_is_done_when_it_returns() -> None:
    done = []
    copying.together(done.append, [slice(0, 1), slice(1, 2), slice(2, 3)])
    assert sorted(part.start for part in done) == [0, 1, 2]


def test_error_of_a_part_is_raised_after_the_others_have_ended() -> None:
    ended = threading.Event()

    def act(part: slice) -> None:
        if part.start == 1:
            raise ValueError("broken")
        ended.set()

    with pytest.raises(ValueError, match="broken"):
        copying.together(act, [slice(0, 1), slice(1, 2)])
    assert ended.is_set()


def test_child_of_a_fork_copies_with_threads_of_its_own() -> None:
    copying.together(lambda part: None, [slice(0, 1), slice(1, 2)])
    child = os.fork()
    if child == 0:
        copying.together(lambda part: None, [slice(0, 1), slice(1, 2)])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
