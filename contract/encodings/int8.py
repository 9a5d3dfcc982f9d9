"""One byte a value, with a scale for each channel: the smallest error of what one byte can do (docs/store.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from contract.encodings.encoding import Array, ArrayEncoding, Layout, Shape, blocks, cast, require_finite

LARGEST = 127


@dataclass(frozen=True, kw_only=True)
class Int8(ArrayEncoding):
    """Symmetric quantisation: q = round(x / s_c) clipped to [-127, 127], x ~ q s_c, for channel c of the last axis.

    s_c is the largest magnitude of channel c in a sample of rows, over 127; it is kept once for the field. Values
    that round to more than 127 steps are clipped and counted.
    """

    kind: Literal["int8"] = "int8"
    constants: ClassVar[tuple[str, ...]] = ("scale",)
    calibrated: ClassVar[bool] = True

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """One int8 array."""
        return {"": ("int8", shape)}

    def calibrate(self, sample: Array) -> dict[str, Array]:
        """Float [n, ..., C] -> scale float32 [C].

        A channel that is always zero in the sample gets the smallest scale there is, so that what it holds
        elsewhere is counted as clipped and not silently rounded to a step that nothing was measured for.
        """
        require_finite(sample)
        largest = np.abs(sample).reshape(-1, sample.shape[-1]).max(axis=0)
        return {"scale": np.maximum(largest / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)}

    def num_clipped(self, values: Array, constants: Mapping[str, Array]) -> int:
        """Values that round to more than 127 steps."""
        return sum(int(np.count_nonzero(np.abs(q) > LARGEST)) for q in _steps(values, constants["scale"]))

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Float [n, ..., C] -> int8 [n, ..., C]."""
        require_finite(values)
        stored = np.empty(values.shape, np.int8)
        for block, q in zip(blocks(stored), _steps(values, constants["scale"]), strict=True):
            block[...] = np.clip(q, -LARGEST, LARGEST, out=q)
        return {"": stored}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Int8 [n, ..., C] -> float32 [n, ..., C]."""
        return cast(stored[""], "float32", xp) * constants["scale"]


def _steps(values: Array, scale: Array) -> Iterator[Array]:
    """Float [n, ..., C] and [C] -> round(x / s_c), one block of rows after the other."""
    for block in blocks(values):
        with np.errstate(over="ignore"):  # far beyond what the sample held: infinitely many steps, clipped
            steps = block / scale
        yield np.rint(steps, out=steps)
