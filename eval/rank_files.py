"""What became of every query, kept beside a report, so that runs can be compared query by query.

RUN/reports/<report>.ranks.npz, for each direction such as text-to-image:
    <direction>/ids             str [q]       the queries that were ranked, each once
    <direction>/ranks           int32 [q]     of the best positive, counted from 1
    <direction>/clusters        int32 [q]     queries of one number share a positive
    <direction>/folds           int8 [q]      the fold that a query was ranked in, 0 where there is one gallery
    <direction>/values/<name>   float64 [q]   a figure's value for each query, where ranks don't make it: mAP@R
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import npz
from contract.errors import RunError
from contract.files import replacing

SUFFIX = ".ranks.npz"
REMEDY = "`eval retrieval` writes it again"

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """One direction: `ids` str [q], the others int64 [q]; `values` are float64 [q], whose means are figures."""

    ids: npt.NDArray[np.str_]
    ranks: Rows
    clusters: Rows
    folds: Rows
    values: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)


def path(report: Path) -> Path:
    """The ranks beside the report NAME.json."""
    return report.with_name(f"{report.stem}{SUFFIX}")


def write(report: Path, directions: Mapping[str, Ranked]) -> Path:
    """Write the ranks of a report's directions beside it, in one step."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, ranked in directions.items():
        arrays[f"{name}/ids"] = ranked.ids
        arrays[f"{name}/ranks"] = ranked.ranks.astype(np.int32)
        arrays[f"{name}/clusters"] = ranked.clusters.astype(np.int32)
        arrays[f"{name}/folds"] = ranked.folds.astype(np.int8)
        arrays |= {f"{name}/values/{figure}": values for figure, values in ranked.values.items()}
    destination = path(report)
    with replacing(destination) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes them for another keyword
    return destination


def read(report: Path) -> dict[str, Ranked]:
    """The ranks beside a report, by direction."""
    source = path(report)
    if not source.is_file():
        raise RunError(f"{source}: no such file: the report has no ranks of single queries; {REMEDY}")
    try:
        arrays = npz.read(source)
        names = [name.removesuffix("/ids") for name in arrays if name.endswith("/ids")]
        return {name: _ranked(name, arrays) for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{source} is damaged: {error}; {REMEDY}") from error


def _ranked(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Ranked:
    start = f"{name}/values/"
    of_queries = {
        key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")
    }
    if len({value.shape for value in of_queries.values()}) > 1:
        raise ValueError(f"arrays of {name} have different lengths")
    return Ranked(
        ids=np.asarray(of_queries["ids"], np.str_),
        **{key: of_queries[key].astype(np.int64) for key in ("ranks", "clusters", "folds")},
        values={
            key.removeprefix(start): value.astype(np.float64)
            for key, value in arrays.items()
            if key.startswith(start)
        },
    )
