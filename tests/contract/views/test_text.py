from pathlib import Path

import pytest

from contract.views import Item, TextView, UndecodableError
from contract.views.text import MAX_CHARACTERS


def load(text: str) -> str:
    return TextView().load(Item(id="a", file=Path(), text=text))


@pytest.mark.parametrize(
    "text", ["a  dog,\trunning", "Ein Hündchen 🐶 läuft", "שלום", "a\0b", "e\u0301", "\u200d", "." * MAX_CHARACTERS]
)
def test_caption_is_left_as_it_stands(text: str) -> None:
    assert load(text) == text


def test_white_space_around_a_caption_is_stripped() -> None:
    assert load(" a dog\u3000\n") == "a dog"


@pytest.mark.parametrize("text", ["", "  ", "\n\t\u00a0"])
def test_empty_caption_is_refused(text: str) -> None:
    with pytest.raises(UndecodableError, match="empty"):
        load(text)


def test_half_a_character_is_refused_before_a_tokenizer_sees_it() -> None:
    with pytest.raises(UndecodableError, match=r"^the caption is not Unicode: surrogates not allowed at 2$"):
        load("a \ud83d dog")


def test_book_is_no_caption() -> None:
    with pytest.raises(UndecodableError, match=r"^the caption has 1,000,001 characters, more than 1,000,000$"):
        load("a" * (MAX_CHARACTERS + 1))
