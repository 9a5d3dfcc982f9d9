"""What a search has found, as JSON and for a terminal."""

from __future__ import annotations

import json
from typing import Any

from eval.search import Found, Neighbour, Shown
from eval.tables import Table

MAX_CHARACTERS = 100
MARKS = {True: "yes", False: "", None: ""}


def as_json(found: Found) -> str:
    """Everything that is known of the item and its neighbours."""
    tree = {
        "run": str(found.student.run),
        "dataset": found.student.dataset,
        "split": found.split,
        "query": _tree(found.item),
        "neighbours": {
            modality: [_tree(one.item) | {"score": one.score, "belongs": one.belongs} for one in neighbours]
            for modality, neighbours in found.neighbours.items()
        },
    }
    return json.dumps(tree, indent=2) + "\n"


def as_text(found: Found) -> str:
    """A table for each modality."""
    item = found.item
    where = f"{found.student.dataset} {found.split}, run {found.student.run}"
    name = f"{item.modality} {_printable(str(item.about['id']))}".rstrip()
    lines = [f"{name}: {_content(item)}", where]
    for modality, neighbours in found.neighbours.items():
        rows = tuple(_row(number, one) for number, one in enumerate(neighbours, start=1))
        heading = "caption" if modality == "text" else "file"
        table = Table(columns=("", "score", "belongs", "id", heading), rows=rows, num_names=5)
        lines += ["", f"nearest {modality} items", table.as_text().rstrip() if rows else "there are none"]
    return "\n".join(lines)


def _row(number: int, one: Neighbour) -> tuple[str, ...]:
    return (
        str(number),
        f"{one.score:.4f}",
        MARKS[one.belongs],
        _printable(str(one.item.about["id"])),
        _content(one.item),
    )


def _tree(item: Shown) -> dict[str, Any]:
    return {"modality": item.modality, **item.about}


def _content(item: Shown) -> str:
    """A caption, or where an image or a sound lies."""
    about = item.about
    if item.modality == "text":
        text = _printable(about["text"])
        return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
    stretch = ""
    if about["start_ms"] or about["length_ms"] >= 0:
        end = f"{(about['start_ms'] + about['length_ms']) / 1000:g}" if about["length_ms"] >= 0 else ""
        stretch = f"{about['start_ms'] / 1000:g} s to {end + ' s' if end else 'its end'}"
    return " ".join(filter(None, (_printable(about["file"]), _printable(about["part"]), stretch)))


def _printable(text: str) -> str:
    """Without what a terminal would obey, or show in another order."""
    return "".join(character if character.isprintable() else " " for character in text)
