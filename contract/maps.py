"""Which shards are open: as many as the machine allows, shared by all threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Maps(Generic[K, T]):
    """At most `most` open shards by name; the one that nobody has asked for the longest is let go of first.

    A thread that still reads one that was let go of keeps it open until it is done.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: OrderedDict[K, _Place[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: K, open_shard: Callable[[K], T]) -> T:
        """The open shard of that name; two threads open one shard once, and two shards at the same time."""
        with self._lock:
            place = self._places.get(name)
            if place is None:
                place = self._places[name] = _Place()
                if len(self._places) > self._most:
                    self._places.popitem(last=False)
            else:
                self._places.move_to_end(name)
        if place.shard is None:
            with place.lock:
                if place.shard is None:
                    place.shard = open_shard(name)
        return place.shard

    def forget(self, name: K) -> None:
        """Let go of a shard whose file has been replaced."""
        with self._lock:
            self._places.pop(name, None)


@dataclass
class _Place(Generic[T]):
    shard: T | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
