from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from contract.store import TargetStore
from eval.__main__ import main
from eval.report_search import as_text
from eval.runs import open_student
from eval.search import search


@pytest.fixture
def ask(call):
    return lambda *arguments: call("search", *arguments, script=main)


def test_neighbours_are_found_in_every_modality(make_run, ask):
    make_run()
    tree = json.loads(ask("--id", "i014", "--k", "5", "--json").out)
    assert (tree["query"]["modality"], tree["query"]["id"], tree["split"]) == ("image", "i014", "test")
    assert {name: len(found) for name, found in tree["neighbours"].items()} == {"image": 5, "text": 5, "audio": 5}
    assert tree["neighbours"]["audio"][0]["id"] == "a014"
    assert {one["text"] for one in tree["neighbours"]["text"][:4]} == {"caption 0 of 14", "caption 1 of 14"}
    assert [one["belongs"] for one in tree["neighbours"]["text"]] == [True] * 4 + [False]


def test_scores_are_cosines_best_first(make_run, ask):
    run = make_run(noise=2.0)
    tree = json.loads(ask("--id", "i014-de-1", "--k", "100", "--json").out)
    store = TargetStore.open(run / "embeddings/toy.zarr")
    row = store.manifest.column("text", "id").index("i014-de-1")
    query = store.load("text/student/embedding", [row])[0]
    for modality, found in tree["neighbours"].items():
        scores = [one["score"] for one in found]
        assert scores == sorted(scores, reverse=True)
        rows = [store.manifest.column(modality, "id").index(one["id"]) for one in found]
        np.testing.assert_allclose(scores, store.load(f"{modality}/student/embedding", rows) @ query, atol=1e-6)


def test_only_items_of_the_same_split_are_neighbours_and_never_the_item_itself(make_run, ask):
    make_run()
    tree = json.loads(ask("--id", "i003", "--k", "100", "--json").out)
    assert tree["split"] == "val"
    found = {name: {one["id"] for one in ones} for name, ones in tree["neighbours"].items()}
    assert found["image"] == {f"i{image:03}" for image in range(12)} - {"i003"}
    assert found["audio"] == {f"a{image:03}" for image in range(12)}
    assert {one["belongs"] for one in tree["neighbours"]["image"]} == {None}


def test_captions_are_of_one_language_if_one_is_asked_for(make_run, ask):
    make_run()
    every = json.loads(ask("--id", "i014", "--json").out)["neighbours"]["text"]
    german = json.loads(ask("--id", "i014", "--language", "de", "--json").out)["neighbours"]["text"]
    assert {one["language"] for one in every} == {"en", "de"}
    assert {one["language"] for one in german} == {"de"}


def test_quarantined_items_are_no_neighbours(make_run, ask):
    make_run(quarantined=[15, 16])
    found = json.loads(ask("--id", "a014", "--k", "100", "--json").out)["neighbours"]["image"]
    assert len(found) == 18
    assert not {"i015", "i016"} & {one["id"] for one in found}


def test_blocks_change_nothing(make_run, ask, monkeypatch):
    make_run()
    whole = ask("--id", "i014", "--json").out
    monkeypatch.setattr("eval.vectors.BLOCK_ROWS", 3)
    assert ask("--id", "i014", "--json").out == whole


def test_the_terminal_shows_scores_and_captions(make_run, ask):
    make_run()
    found = ask("--id", "a014", "--k", "2")
    assert "run: runs/one (the newest)" in found.err
    assert found.out.startswith("audio a014:")
    assert "toy test, run runs/one" in found.out
    assert "1 of 14" in found.out
    assert "nearest audio items" in found.out


def test_an_id_of_several_modalities_is_the_first_ones_unless_it_is_told(make_run):
    student = open_student(make_run(modalities=("image", "audio")), None)
    ids = pa.array([f"same{row}" for row in range(32)])
    items = {name: table.set_column(0, "id", ids) for name, table in student.store.manifest.items.items()}
    object.__setattr__(student.store.manifest, "items", items)
    said: list[str] = []
    asked = {"language": None, "k": 1, "say": said.append}
    assert search(student, "same14", modality="audio", **asked).item.modality == "audio"
    assert said == []
    assert search(student, "same14", modality=None, **asked).item.modality == "image"
    assert said == ["modality: image ('same14' is an id of image and audio items; --modality says which)"]


def test_a_caption_that_steers_a_terminal_is_only_text(make_run):
    student = open_student(make_run(), None)
    text = student.store.manifest.items["text"]
    nasty = pa.array(["\x1b[2J\x1b]0;title\x07 \u202egpj.exe"] * text.num_rows)
    at = text.schema.get_field_index("text")
    items = student.store.manifest.items | {"text": text.set_column(at, "text", nasty)}
    object.__setattr__(student.store.manifest, "items", items)
    shown = as_text(search(student, "i014", modality=None, language=None, k=1, say=[].append))
    assert "gpj.exe" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--id", "nobody"],
            "has no item 'nobody'; ids are such as 'i000' (image), 'i000-en-0' (text)",
        ),
        (["--id", "i014", "--modality", "audio"], "has no audio 'i014'"),
        (["--id", "i014", "--modality", "smell"], "'smell'; --modality may be one of: image, text, audio"),
        (["--id", "i014", "--language", "fr"], "no captions in language 'fr'; --language may be one of: de, en"),
        (["--id", "i014", "--k", "0"], "--k 0: at least one neighbour"),
        (["--id", "i003"], "image 'i003' could not be decoded, it has no embedding"),
        (["--id", "i014", "--run", "nowhere"], "nowhere: no run there"),
        ([], "give one of --id, --text, --image, --audio, not none"),
    ],
)
def test_a_mistake_is_one_line(make_run, ask, arguments, message):
    make_run(quarantined=[3])
    found = ask(*arguments)
    assert found.exit_code != 0
    assert found.out == ""
    assert message in found.err.splitlines()[-1]
    assert found.err.splitlines()[-1].startswith("error: ")
