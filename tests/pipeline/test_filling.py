"""The thread that writes shards while others fill up."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

import pytest

from pipeline.filling import Writing


class Parcel:
    """Something to write."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write_it = write

    def write(self) -> None:
        self.write_it()


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("write")]


def test_one_shard_is_written_while_the_next_one_fills_up_and_no_more() -> None:
    may_end = threading.Event()
    happened: list[str] = []

    def slow() -> None:
        happened.append("first begins")
        may_end.wait(10)
        happened.append("first ends")

    with Writing() as writing:
        writing.begin(slow)
        happened.append("filling")  # in the meantime
        threading.Timer(0.1, may_end.set).start()
        writing.begin(lambda: happened.append("second"))
        writing.finish()
    assert sorted(happened[:2]) == ["filling", "first begins"]
    assert happened[2:] == ["first ends", "second"]


def test_a_shard_that_is_written_is_let_go_of() -> None:
    with Writing() as writing:
        first = Parcel(lambda: None)
        gone = weakref.ref(first)
        writing.begin(first.write)
        del first
        writing.begin(lambda: None)
        writing.finish()
        assert gone() is None


def full() -> None:
    raise OSError(28, "No space left on device")


def test_what_goes_wrong_is_raised_by_whatever_comes_next() -> None:
    for ask in (Writing.finish, lambda writing: writing.begin(lambda: None)):
        with Writing() as writing:
            writing.begin(full)
            with pytest.raises(OSError, match="No space left"):
                ask(writing)
            writing.finish()  # it was said


def test_what_went_wrong_is_known_before_the_next_shard_is_full() -> None:
    with Writing() as writing:
        writing.check()
        writing.begin(full)
        deadline = time.monotonic() + 10
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - it is told as soon as it happens
            while time.monotonic() < deadline:
                writing.check()


def test_nothing_is_written_once_the_block_is_left() -> None:
    happened: list[str] = []
    began = threading.Event()

    def slow() -> None:
        began.set()
        threading.Event().wait(0.1)
        happened.append("written")

    with pytest.raises(KeyboardInterrupt), Writing() as writing:  # noqa: PT012 - leaving is what is tested
        writing.begin(slow)
        began.wait(10)
        raise KeyboardInterrupt
    assert happened == ["written"]
    assert not writers()
