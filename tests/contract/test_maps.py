import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from contract.maps import Maps


def test_the_one_that_was_not_asked_for_the_longest_goes_first() -> None:
    maps, opened = Maps(2), []

    def get(name: str) -> str:
        return maps.get(name, lambda name: opened.append(name) or name)

    assert [get(name) for name in ("a", "b", "a", "c", "a", "b")] == ["a", "b", "a", "c", "a", "b"]
    assert opened == ["a", "b", "c", "b"]


def test_what_is_forgotten_is_opened_again() -> None:
    maps = Maps(2)
    maps.get("a", lambda _: 1)
    maps.forget("a")
    maps.forget("never there")
    assert maps.get("a", lambda _: 2) == 2


def test_what_could_not_be_opened_is_tried_again() -> None:
    maps = Maps(2)
    with pytest.raises(ZeroDivisionError):
        maps.get("a", lambda _: 1 // 0)
    assert maps.get("a", lambda _: 3) == 3


def test_one_shard_is_opened_once_and_two_at_the_same_time() -> None:
    maps, both, opened = Maps(4), threading.Barrier(2, timeout=10), []

    def open_shard(name: str) -> str:
        opened.append(name)
        both.wait()  # broken unless the other is being opened meanwhile
        time.sleep(0.05)  # in which the other threads come, too
        return name

    names = ["a", "b"] * 8
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda name: maps.get(name, open_shard), names))
    assert found == names
    assert sorted(opened) == ["a", "b"]


def test_threads_get_what_they_ask_for_while_others_make_it_go() -> None:
    maps = Maps(2)

    def ask(seed: int) -> bool:
        names = np.random.default_rng(seed).integers(0, 6, 400).tolist()
        return all(maps.get(name, lambda name: [name])[0] == name for name in names)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
