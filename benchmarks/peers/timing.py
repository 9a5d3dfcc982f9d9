"""Timing in alternation: A, B, C, B, C, A, ... so that whatever the machine does meanwhile hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import TypeVar

Argument = TypeVar("Argument")


def alternate(
    actions: Mapping[str, Callable[[Argument], object]],
    prepare: Callable[[], Argument],
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of every action in every round.

    In a round all actions get the same argument, fresh from `prepare`; every round begins with another action.
    """
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        argument = prepare()
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(timed(actions[name], argument))
        del argument  # and with it whatever it holds open, before the next is prepared
    return seconds


def timed(action: Callable[[Argument], object], argument: Argument) -> float:
    """Seconds that one call took."""
    started = time.perf_counter()
    action(argument)
    return time.perf_counter() - started


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Quotient of each round's two figures."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(figures: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and quartiles."""
    first, _, third = quantiles(figures, n=4, method="inclusive") if len(figures) > 1 else [figures[0]] * 3
    return {"median": round(median(figures), digits), "q1": round(first, digits), "q3": round(third, digits)}
