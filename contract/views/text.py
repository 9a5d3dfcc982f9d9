"""Text: the caption as it stands."""

from __future__ import annotations

from dataclasses import dataclass

from contract.views.item import Item, UndecodableError

# Far beyond what any encoder reads of it, and what a tokenizer still gets through in a second.
MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TextView:
    """The caption without surrounding white space; all else, control characters too, is the tokenizer's to judge.

    An empty one is quarantined, and one that is not Unicode, and a book.
    """

    def load(self, item: Item) -> str:
        """Return the caption."""
        text = item.text.strip()
        if not text:
            raise UndecodableError("the caption is empty")
        if len(text) > MAX_CHARACTERS:
            raise UndecodableError(f"the caption has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UndecodableError(f"the caption is not Unicode: {error.reason} at {error.start:,}") from error
        return text
