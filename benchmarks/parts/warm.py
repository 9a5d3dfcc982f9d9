"""Random batches with everything in memory: floor, ours and one peer by turns, into one buffer."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peers import Skipped, batches, process, timing, with_precept
from peers.batches import BATCH, Mode, Read, Rows
from peers.timing import spread

from contract.store import TargetStore

TRIAL_ROUNDS = 5
WARM_UP_S = 10.0

Result = dict[str, Any]


class Warm:
    """The source and the store in `work`, and what reads them."""

    def __init__(self, work: Path, num_rows: int, rounds: int) -> None:
        self._work, self._rounds = work, rounds
        self._source = batches.open_source(work / "source.bin", num_rows)
        self._out = batches.buffer()
        self._rng = np.random.default_rng(1)
        store = TargetStore.open(work / "store.zarr")
        modes = {
            "floor": batches.floor(self._source),
            "ours": with_precept.reader(store),
            "ours, checked": with_precept.reader(store, check=True),
        }
        self._actions = {name: self._warmed(Mode(read=read)) for name, read in modes.items()}

    def ours(self) -> Result:
        """Ours, unchecked and checked, against the floor."""
        seconds = self._alternate(self._actions, self._rounds)
        return {name: _compared(seconds, name) for name in self._actions}

    def peer(self, name: str) -> Result:
        """A peer in its fastest mode, against floor and ours."""
        try:
            module = importlib.import_module(f"peers.with_{name}")
        except ImportError as error:
            raise Skipped(f"not installed: {error}") from error
        folder = self._work / name
        folder.mkdir()
        modes: dict[str, Mode] = module.prepare(folder, self._source)
        os.sync()  # or the kernel writes while others are timed
        actions = {mode: self._warmed(modes[mode]) for mode in modes}
        tried = {mode: self._try(action) for mode, action in actions.items()}
        fastest = min(tried, key=lambda mode: tried[mode])
        seconds = self._alternate(self._beside_ours() | {"peer": actions[fastest]}, self._rounds)
        shutil.rmtree(folder)
        return {
            "mode": fastest,
            **_compared(seconds, "peer"),
            "over_ours": spread(timing.ratios(seconds["peer"], seconds["ours"])),
            "modes_over_floor": tried,
        }

    def mosaic(self, python: Path | None) -> Result:
        """mosaicml-streaming in its own process; what is compared are the ratios to each process's own floor."""
        folder = self._work / "mosaic"
        folder.mkdir()
        source = self._work / "source.bin"
        beside, answers = [], []
        with process.mosaic(python, source, len(self._source), folder) as ask:
            ask()
            os.sync()
            for _ in range(self._rounds):
                beside.append(self._alternate(self._beside_ours(), 2))
                answers.append(ask())
        shutil.rmtree(folder)
        seconds = {name: [answer["seconds"][name] for answer in answers] for name in answers[0]["seconds"]}
        over_floor = {mode: timing.ratios(seconds[mode], seconds["floor"]) for mode in seconds if mode != "floor"}
        fastest = min(over_floor, key=lambda mode: median(over_floor[mode]))
        ours_over_floor = [sum(one["ours"]) / sum(one["floor"]) for one in beside]
        return {
            "mode": fastest,
            **_compared(seconds, fastest),
            "over_ours": spread(timing.ratios(over_floor[fastest], ours_over_floor)),
            "modes_over_floor": {mode: round(median(ratios), 3) for mode, ratios in over_floor.items()},
            "version": answers[0]["version"],
        }

    def _try(self, action: Callable[[Rows], object]) -> float:
        """The median ratio to the floor in a few rounds."""
        seconds = self._alternate({"floor": self._actions["floor"], "peer": action}, TRIAL_ROUNDS)
        return round(median(timing.ratios(seconds["peer"], seconds["floor"])), 3)

    def _beside_ours(self) -> dict[str, Callable[[Rows], object]]:
        return {name: self._actions[name] for name in ("floor", "ours")}

    def _alternate(self, actions: Mapping[str, Callable[[Rows], object]], rounds: int) -> dict[str, list[float]]:
        return timing.alternate(actions, partial(batches.draw, self._rng, len(self._source)), rounds)

    def _warmed(self, mode: Mode) -> Callable[[Rows], object]:
        """The mode with the buffer, once it has been found right and has read everything, or for ten seconds."""
        batches.check(mode, self._source, self._rng)
        action = partial(_read, mode.read, self._out)
        until = time.monotonic() + WARM_UP_S
        for rows in self._rng.permutation(len(self._source)).reshape(-1, BATCH):
            if time.monotonic() < until:
                action(rows)
        return action


def _read(read: Read, out: torch.Tensor, rows: Rows) -> torch.Tensor:
    return read(rows, out)


def _compared(seconds: Mapping[str, list[float]], name: str) -> Result:
    return {
        "ms": spread([1e3 * figure for figure in seconds[name]], 2),
        "floor_ms": spread([1e3 * figure for figure in seconds["floor"]], 2),
        "over_floor": spread(timing.ratios(seconds[name], seconds["floor"])),
    }
