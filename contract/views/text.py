"""Text: the caption as it stands."""

from __future__ import annotations

from dataclasses import dataclass

from contract.views.item import Item, UndecodableError


@dataclass(frozen=True, kw_only=True)
class TextView:
    """The caption without surrounding white space; an empty one is quarantined."""

    def load(self, item: Item) -> str:
        """Return the caption."""
        text = item.text.strip()
        if not text:
            raise UndecodableError("the caption is empty")
        return text
