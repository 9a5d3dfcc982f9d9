"""What stands beside a stream's pairs: further modalities of its anchors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.errors import ConfigError, UserError
from contract.store import TargetStore
from trainer import captioning, runs
from trainer.fit import fit
from trainer.recipes import Recipe
from trainer.resolve import resolve

Make = Callable[..., Recipe]
BESIDE: dict[str, Any] = {"streams": [{"pair": "image-text", "beside": ["audio"]}]}
CAPTION = {"caption": {"kind": "caption", "decoder": {"width": 16, "num_heads": 2}}, "nce": {"kind": "infonce"}}


def test_batch_has_the_sound_of_each_of_its_images(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(BESIDE), [store])
    for step in range(3):
        stream, drawn = streams.draw(step)
        rows = drawn.shown.rows
        assert sorted(rows) == ["audio", "image", "text"]
        np.testing.assert_array_equal(rows["audio"], rows["image"])  # of the tiny store, image i has sound i
        batch = streams.read(step).to("cpu")
        assert batch.pair == ("image", "text")
        assert torch.equal(batch.inputs["audio"].values, stream.inputs["audio"].load(store, rows["audio"]).values)
    assert sorted(streams.shapes()) == ["audio", "image", "text"]


def test_what_a_store_does_not_pair_with_the_anchor_is_refused(
    recipe: Make, new_store: Any, tmp_path: Path
) -> None:
    silent = new_store(tmp_path / "silent.zarr", with_audio=False)
    with pytest.raises(UserError, match="audio"):
        resolve(recipe(BESIDE), [silent])


def test_captions_are_made_of_images_and_their_sounds(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(
        recipe({**BESIDE, "objectives": CAPTION, "targets": {}, "epochs": 1}), [store.path], tmp_path / "run"
    )
    fit(run)
    (scores,) = captioning.write(run, ["test"], beam=2)
    assert (scores.modality, scores.num_items) == ("image", 16)


@pytest.mark.parametrize("modality", ["image", "smell"])
def test_what_the_pairs_have_or_no_pair_has_is_refused(recipe: Make, store: TargetStore, modality: str) -> None:
    with pytest.raises(ConfigError, match=f"beside: .* no pairs image-{modality}"):
        resolve(recipe({"streams": [{"pair": "image-text", "beside": [modality]}]}), [store])
