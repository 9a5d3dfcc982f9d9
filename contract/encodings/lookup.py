"""Token ids, and the frozen embedding table once: token embeddings without loss, some hundred times smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from contract.encodings.encoding import Array, ArrayEncoding, Layout, Shape, cast, refuse

PADDING = -1


@dataclass(frozen=True, kw_only=True)
class Lookup(ArrayEncoding):
    """Rows of a table: what is stored for a sequence are its ids, -1 where it has ended; those decode to zeros.

    `table` float32 [V, D] is kept once for the field.
    """

    kind: Literal["lookup"] = "lookup"
    source: ClassVar[str] = "ids"
    constants: ClassVar[tuple[str, ...]] = ("table",)

    def input(self, shape: Shape) -> Layout:
        """Ids for each token."""
        return "int32", shape[:-1]

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """`ids` int32 [T]."""
        return {"ids": ("int32", shape[:-1])}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Ids integer [n, T] -> int32 [n, T]."""
        assert np.issubdtype(values.dtype, np.integer), values.dtype
        num_rows = len(constants["table"])
        refuse(
            (values < PADDING) | (values >= num_rows), values, f"are not among the {num_rows:,} rows of the table"
        )
        return {"ids": np.asarray(values, np.int32)}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Ids [n, T] -> float32 [n, T, D]."""
        ids = cast(stored["ids"], "int64", xp)
        padding = ids == PADDING
        decoded = constants["table"][xp.where(padding, 0, ids)]
        decoded[padding] = 0
        return decoded
