"""Code-switching: the transform, its dictionaries, and the batches of a stream that it rewrites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract import config
from contract.encodings import BFloat16, Float16, Float32
from contract.errors import ConfigError
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore
from encoders import HuggingFaceText
from encoders.ngrams import Encodings, Ngrams
from pipeline.sources.scenes import describe, english, german, spanish
from pipeline.sources.scenes.world import sample_scene
from trainer.captions import Rewritten
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.transforms.code_switch import CodeSwitch, find, read

Make = Callable[..., Recipe]
SHIPPED = ("scenes-en-de", "scenes-en-es")
CAPTIONS = [f"A red {shape} at the {place}." for shape in ("circle", "star", "cross") for place in ("top", "left")]


def test_dictionary_in_the_format_of_muse_is_read(tmp_path: Path) -> None:
    file = tmp_path / "en-xx.txt"
    file.write_text("the der\nThe die\nstriped\ta rayas\n")
    assert read(file) == {"the": ("der", "die"), "striped": ("a rayas",)}


@pytest.mark.parametrize(
    ("content", "message"), [("the der\nred\n", r"line 2: .*'red'"), ("", "no word"), ("the der\n\n", "line 2")]
)
def test_file_that_is_no_dictionary_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "en-xx.txt"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(file)


def test_dictionary_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"scenes-en-fr is no file.*scenes-en-de, scenes-en-es"):
        CodeSwitch(dictionaries=("scenes-en-fr",)).build()


@pytest.mark.parametrize(("name", "language"), [("scenes-en-de", german), ("scenes-en-es", spanish)])
def test_shipped_dictionary_says_what_the_captions_of_the_language_say(name: str, language: Any) -> None:
    rng = np.random.default_rng(0)
    told = frozenset(describe.TELLABLE)
    source, target = set(), set()
    for _ in range(2000):
        scene = sample_scene(rng)
        source |= set(re.findall(r"[\w-]+", english.caption(scene, told, rng).lower()))
        source |= set(re.findall(r"[\w-]+", english.caption(scene, frozenset({"secondary"}), rng).lower()))
        for some in (told, frozenset({"secondary"}), frozenset()):
            target |= set(re.findall(r"\w+", language.caption(scene, some, rng).lower()))
    dictionary = read(find(name))
    assert dictionary.keys() <= source | {"an"}
    assert source - dictionary.keys() <= {"it", "its", "to", "is", "we"}
    unheard = {word for said in dictionary.values() for one in said for word in one.lower().split()} - target
    stems = {word for word in unheard if any(other.startswith(word) or word[:-1] in other for other in target)}
    assert unheard - stems <= {"an"}  # grammatical forms apart


def test_beta_is_the_share_of_words_that_change_and_languages_share_them_evenly() -> None:
    change = CodeSwitch(beta=0.3, dictionaries=SHIPPED).build()
    texts = ["red star"] * 4000
    found = change(texts, np.arange(4000), (1, 2))
    second = Counter(text.split(" ")[1] for text in found)
    assert second["star"] / 4000 == pytest.approx(0.7, abs=0.03)
    assert second["Stern"] == pytest.approx(second["estrella"], rel=0.2)
    both = sum(text.split(" ")[0] != "red" and text.split(" ")[1] != "star" for text in found)
    assert both / 4000 == pytest.approx(0.09, abs=0.02)  # independently


def test_nothing_changes_at_beta_zero_everything_at_one_and_unknown_words_never() -> None:
    rows = np.arange(1)
    caption = "A red star, zweifellos, at 3 o'clock."
    assert CodeSwitch(beta=0.0, dictionaries=SHIPPED).build()([caption], rows, (0,)) == [caption]
    (found,) = CodeSwitch(beta=1.0, dictionaries=("scenes-en-es",)).build()([caption], rows, (0,))
    assert re.fullmatch(r"una? roj[oa] estrella, zweifellos, en 3 o'clock\.", found)


def test_change_depends_on_key_and_row_and_not_on_the_rest_of_the_batch() -> None:
    change = CodeSwitch(dictionaries=SHIPPED).build()
    rows = np.arange(len(CAPTIONS))
    found = change(CAPTIONS, rows, (3, 1))
    order = np.array([4, 0, 2])
    assert change([CAPTIONS[i] for i in order], order, (3, 1)) == [found[i] for i in order]
    assert change(CAPTIONS, rows, (3, 2)) != found
    assert change(CAPTIONS, rows + 100, (3, 1)) != found


def make_store(path: Path, encoder: Ngrams) -> TargetStore:
    """Images, and English captions of which each has the tokens that the encoder gives."""
    num = len(CAPTIONS)
    items = {
        "image": items_table({"id": [f"i{n}" for n in range(num)], "split": ["train"] * num}),
        "text": items_table(
            {
                "id": [f"t{n}" for n in range(num)],
                "text": CAPTIONS,
                "language": ["en"] * num,
                "split": ["train"] * num,
            }
        ),
    }
    pairs = dict([pairs_table("image", "text", [(n, n) for n in range(num)])])
    store = TargetStore.create(path, Manifest(dataset="tiny", protocol="tiny", items=items, pairs=pairs))
    images = np.random.default_rng(0).normal(size=(num, 4, 6)).astype(np.float32)
    fields = (Field(name="patch_embeddings", shape=(4, 6), encoding=Float32()),)
    write(
        store,
        FieldSet(name="eyes", modality="image", fields=fields, batch_size=8, provenance={}),
        {"patch_embeddings": images},
    )
    outputs = encoder.build("cpu")(CAPTIONS)
    provenance = {"recipe": encoder.recipe(), "encoder": config.tree(encoder)}
    fieldset = FieldSet(name="words", modality="text", fields=encoder.fields(), batch_size=8, provenance=provenance)
    write(store, fieldset, outputs)
    return store


def write(store: TargetStore, fieldset: FieldSet, values: dict[str, Any]) -> None:
    store.add(fieldset)
    store.write_shard(fieldset.key, 0, {field.name: values[field.name] for field in fieldset.fields})


def changes(**stream: Any) -> dict[str, Any]:
    return {
        "batch_size": 3,
        "targets": {},
        "objectives": {"rank": {"kind": "ranking"}},
        "streams": [{"pair": "image-text", **stream}],
    }


SWITCH = {"kind": "code_switch", "beta": 0.5, "dictionaries": list(SHIPPED)}


@pytest.mark.parametrize("encoding", [Float32(), Float16(), BFloat16()], ids=lambda e: e.kind)
def test_batch_is_that_of_a_store_of_the_switched_captions(recipe: Make, tmp_path: Path, encoding: Any) -> None:
    encoder = Ngrams(width=16, max_length=9, encodings=Encodings(token_embeddings=encoding))
    store = make_store(tmp_path / "tiny.zarr", encoder)
    streams = resolve(recipe(changes(transforms=[SWITCH])), [store])
    seen = []
    for step, batch in enumerate(Loader(streams, 0, 6, "cpu")):
        stream, drawn = streams.draw(step)
        assert stream.rewritten is not None
        texts = stream._texts(drawn.shown, drawn.key)
        seen += texts
        expected = encoder.build("cpu")(texts)
        values, length, _ = batch.inputs["text"]
        assert length is not None
        np.testing.assert_array_equal(length, expected["length"])
        field = encoder.fields()[0]
        stored = field.decode(field.encode(expected["token_embeddings"], {}), {}, np)[:, : values.shape[1]]
        np.testing.assert_array_equal(values, stored)
    assert len(set(seen) - set(CAPTIONS)) > 6


def test_switching_at_beta_zero_gives_what_is_stored(recipe: Make, tmp_path: Path) -> None:
    store = make_store(tmp_path / "tiny.zarr", Ngrams(width=16, max_length=9))
    plain = resolve(recipe(changes()), [store])
    still = resolve(recipe(changes(transforms=[SWITCH | {"beta": 0.0}])), [store])
    for step in range(4):
        first, second = (streams.read(step).to("cpu").inputs["text"] for streams in (plain, still))
        assert torch.equal(first.values, second.values)


def test_steps_may_be_read_in_any_order(recipe: Make, tmp_path: Path) -> None:
    store = make_store(tmp_path / "tiny.zarr", Ngrams(width=16, max_length=9))
    made = recipe(changes(transforms=[SWITCH]))
    later = resolve(made, [store]).read(5).to("cpu").inputs["text"]
    streams = resolve(made, [store])
    from_the_start = [streams.read(step).to("cpu").inputs["text"] for step in range(6)]
    assert torch.equal(later.values, from_the_start[5].values)


def test_encoder_whose_tokens_see_each_other_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "tiny.zarr", Ngrams(width=16, max_length=9))
    monkeypatch.setattr("trainer.captions.encoder", lambda *_: HuggingFaceText(model="anything", layer="last"))
    with pytest.raises(ConfigError, match="depends on its neighbours"):
        Rewritten(store, "text/words/token_embeddings", [CodeSwitch(dictionaries=SHIPPED)])


def test_transform_of_a_stream_without_captions_is_refused(recipe: Make, store: TargetStore) -> None:
    listed = [{"pair": "image-audio", "transforms": [SWITCH]}]
    with pytest.raises(ConfigError, match="image-audio: transforms rewrite captions, and it has none"):
        resolve(recipe({"streams": listed}), [store])
