"""What a run stores of each view: the replayed pixels, and what the encoders say of them."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

from contract.store import TargetStore
from contract.views import Item
from pipeline import plan
from pipeline.decoding import Decoder
from pipeline.worker import ShardWorker, cosine, pooled

NUM_VIEWS = 3


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory, make_project: Any) -> Any:
    """Ten photographs in three views each: a teacher whose pixels are stored, and one with larger inputs."""
    project = make_project(tmp_path_factory.mktemp("viewed"), 10)
    Image.effect_noise((50, 38), 90).convert("RGB").save(project.data / "images/2.png")
    teacher = project.encoders["image"]["teacher"]
    larger = teacher | {"model_args": teacher["model_args"] | {"dynamic_img_size": True}, "batch_size": 5}
    project.encoders["image"] = {
        "teacher": teacher | {"encodings": {"patch_embeddings": {"kind": "pixels"}}},
        "larger": larger | {"preprocessing": {"input_size": [3, 24, 24]}},
    }
    project.configure(views={"num": NUM_VIEWS, "seed": 7})
    project.precompute()
    return project


def replayed(project: Any, name: str, row: int) -> list[np.ndarray]:
    """The views of a photograph, made from what is stored of them."""
    parameters = [project.opened().load(f"image/{name}/view_parameters", [row], views=v)[0] for v in all_views()]
    file = project.data / f"images/{row}.png"
    view = project.settings().encoders.image[name].view()
    replayed: list[np.ndarray] = view.replay(Item(id=str(row), file=file), np.stack(parameters))
    return replayed


def all_views() -> range:
    return range(NUM_VIEWS + 1)


def test_stored_views_are_the_replayed_pixels_and_what_the_encoder_says_of_them(viewed) -> None:
    store = viewed.opened()
    model = viewed.settings().encoders.image["teacher"].build("cpu")
    for row in range(10):
        pixels = replayed(viewed, "teacher", row)
        outputs = model(pixels)
        for view in all_views():
            stored = store.read("image/teacher/patch_embeddings", [row], views=view)
            np.testing.assert_array_equal(stored["patch_embeddings.pixels"][0], pixels[view])
            for name in ("patch_embeddings", "features", "logits"):
                found = store.load(f"image/teacher/{name}", [row], views=view)[0]
                np.testing.assert_allclose(found, outputs[name][view], rtol=1e-3, atol=1e-3)
    assert not store.load("image/teacher/view_parameters", range(10)).any()  # the evaluation view


def test_a_views_logits_are_of_the_pixels_that_its_patch_embeddings_are_of(viewed) -> None:
    store, rows = viewed.opened(), range(10)
    model = viewed.settings().encoders.image["teacher"].build("cpu")
    logits = [store.load("image/teacher/logits", rows, views=view) for view in all_views()]
    for view in all_views():
        pixels = store.read("image/teacher/patch_embeddings", rows, views=view)["patch_embeddings.pixels"]
        again = model(list(pixels))["logits"]
        np.testing.assert_allclose(logits[view], again, atol=2e-3)
        for other in set(all_views()) - {view}:
            assert np.abs(logits[other] - again).max(axis=1).min() > 4e-3


def test_a_mirrored_views_patches_are_those_of_the_mirrored_pixels(viewed) -> None:
    store = viewed.opened()
    model, view = (
        viewed.settings().encoders.image["teacher"].build("cpu"),
        viewed.settings().encoders.image["teacher"].view(),
    )
    parameters = np.concatenate(
        [store.load("image/teacher/view_parameters", range(10), views=v) for v in all_views()]
    )
    rows, views = np.tile(np.arange(10), NUM_VIEWS + 1), np.repeat(all_views(), 10)
    (at, *_), flip = np.flatnonzero(parameters[:, 4] == 1), 4
    row, number = int(rows[at]), int(views[at])
    unmirrored = parameters[at].copy()
    unmirrored[flip] = 0
    item = Item(id=str(row), file=viewed.data / f"images/{row}.png")
    # The colours come after the mirror, and to none of them does it matter where a pixel lies.
    (pixels,) = view.replay(item, unmirrored[None])
    of_mirrored_pixels = model([pixels[:, ::-1]])["patch_embeddings"][0]
    grid = model([pixels])["patch_embeddings"][0].reshape(4, 4, -1)
    mirrored_grid = grid[:, ::-1].reshape(16, -1)
    stored = store.load("image/teacher/patch_embeddings", [row], views=number)[0]
    np.testing.assert_allclose(stored, of_mirrored_pixels, atol=1e-3)
    assert np.abs(stored - mirrored_grid).max() > 0.1


def test_encoders_with_inputs_of_other_sizes_see_the_same_crops(viewed) -> None:
    store = viewed.opened()
    for view in all_views():
        one, other = (
            store.load(f"image/{n}/view_parameters", range(10), views=view) for n in ("teacher", "larger")
        )
        np.testing.assert_array_equal(one, other)
    assert replayed(viewed, "larger", 2)[1].shape == (24, 24, 3)
    model = viewed.settings().encoders.image["larger"].build("cpu")
    found = np.concatenate([store.load("image/larger/logits", [2], views=view) for view in all_views()])
    np.testing.assert_allclose(found, model(replayed(viewed, "larger", 2))["logits"], atol=1e-3)


def test_captions_have_the_evaluation_view_alone(viewed) -> None:
    fieldset = viewed.opened().fieldsets["text/tokens"]
    assert fieldset.num_views == 0
    assert [field.name for field in fieldset.fields] == ["token_embeddings", "length"]


def test_another_seed_is_another_fieldset(viewed) -> None:
    message = viewed.error_of(*viewed.arguments("--set", "views.seed=8"))
    assert "image/larger was made by another encoder or setting: recipe.augmentation.seed: 7, not 8" in message
    message = viewed.error_of(*viewed.arguments("--views", "2"))
    assert "image/larger was made by another encoder or setting: num_views: 3, not 2" in message


def test_views_of_sounds_are_the_replayed_samples(scenes) -> None:
    scenes.precompute("--views", "2")
    store, rows = scenes.opened(), range(6)
    fieldset = store.fieldsets["audio/patches"]
    encoder = scenes.settings().encoders.audio["patches"]
    model, view = encoder.build("cpu"), encoder.view()
    files = store.manifest.column("audio", "file", rows)
    ids = store.manifest.column("audio", "id", rows)
    assert fieldset.num_views == 2
    for row in rows:
        drawn = [store.load("audio/patches/view_parameters", [row], views=v)[0] for v in range(3)]
        item = Item(id=ids[row], file=scenes.data / files[row])
        patches = model(view.replay(item, np.stack(drawn)))["patch_embeddings"]
        for v in range(3):
            stored = store.load("audio/patches/patch_embeddings", [row], views=v)[0]
            np.testing.assert_allclose(stored, patches[v], rtol=1e-3, atol=2e-3)
        assert np.abs(patches[1] - patches[0]).max() > 0.1


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT of a small configuration, which knows the words of the photographs' captions."""
    path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photograph", "with", "noise", *map(str, range(30))]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(path)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **small)).save_pretrained(path)
    return path


def test_looked_up_tokens_are_those_of_the_float_path(project, bert: Path) -> None:
    encoder = {"kind": "huggingface_text", "model": str(bert), "max_length": 9, "batch_size": 7}
    encoders = {
        "ids": encoder | {"encodings": {"token_embeddings": {"kind": "lookup"}}},
        "floats": encoder | {"encodings": {"token_embeddings": {"kind": "float32"}}},
    }
    project.write("bert.yaml", {"encoders": {"text": encoders}})
    project.precompute("--config", "bert.yaml")
    store = project.opened()
    ids, floats = (store.load(f"text/{name}/token_embeddings", range(60)) for name in ("ids", "floats"))
    np.testing.assert_array_equal(ids, floats)
    assert ids.any()
    assert store.fieldsets["text/ids"].row_bytes == 4 * 9 + 4
    shown = project.call("show", "stores/tiny.zarr").out
    assert "token_embeddings: [9, 16] as lookup, 36 bytes a sample, error: one minus cosine " in shown
    assert ", relative rmse 0 (layer embeddings)" in shown


def test_scales_are_measured_on_what_is_stored(project) -> None:
    # Colours make the augmented views exceed anything that the evaluation views hold.
    assert "were clipped" not in project.precompute("--views", "7", *_int8())
    parameters = project.opened().load("image/teacher/view_parameters", range(30), views=7)
    assert (parameters[:, 5] > 1).any()  # brighter


def test_scales_of_nothing_are_one_line(project) -> None:
    for file in (project.data / "images").glob("*.png"):
        file.write_bytes(b"no image")
    message = project.error_of(*project.arguments(*_int8()))
    assert "image/teacher: none of 30 inputs" in message
    assert "could be decoded, and int8 measures its scales on them" in message


def test_values_that_are_not_finite_are_no_scale(project, spoil) -> None:
    spoil(project, "head.bias", np.nan)
    message = project.error_of(*project.arguments("--set", "encoders.image.teacher.encodings.logits.kind=int8"))
    assert "image/teacher: logits of sample '0' and perhaps others: 30 of 210 values are not finite" in message


def _int8() -> list[str]:
    return ["--set", "encoders.image.teacher.encodings.patch_embeddings.kind=int8"]


def test_padding_is_left_out_of_the_mean_of_tokens() -> None:
    tokens = np.array([[[1.0, 3.0], [3.0, 5.0], [9.0, 9.0]], [[9.0, 9.0]] * 3])
    np.testing.assert_array_equal(pooled(tokens, np.array([2, 0])), [[2.0, 4.0], [0.0, 0.0]])
    np.testing.assert_array_equal(pooled(tokens[1:], None), [[9.0, 9.0]])


LIMITED = """
import torch


class Means(torch.nn.Module):
    def __init__(self, limit, width):
        super().__init__()
        self.limit, self.width = limit, width

    def forward(self, pixels):
        if len(pixels) > self.limit and pixels.any():  # what it gives is found out with zeros
            raise MemoryError
        means = pixels.mean(dim=(2, 3)).tile(1, self.width)
        return {"features": means, "patches": means[:, None].tile(1, 200, 1)}


def means(limit, width=1):
    return Means(limit, width)
"""


def limited(project: Any, limit: int, width: int = 1, **more: Any) -> None:
    """The teacher is one that runs out of memory beyond so many views."""
    (project.folder / "limited.py").write_text(LIMITED)
    view = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    teacher = {"kind": "custom", "factory": "limited:means", "args": {"limit": limit, "width": width}}
    project.encoders = {"image": {"teacher": teacher | {"batch_size": 16, "preprocessing": view} | more}}
    project.configure()


def test_batches_are_halved_where_memory_runs_out_and_that_is_said_recorded_and_shown(project) -> None:
    limited(project, 100)
    project.precompute("--store", "stores/whole.zarr")
    limited(project, 5)
    outcome = project.call(*project.arguments())
    assert outcome.exit_code == 0, outcome.err
    told = [line for line in outcome.err.splitlines() if "memory ran out" in line]
    assert told == [
        "note: image/teacher: memory ran out on 16 views; from here on 4 at a time go through the encoder"
    ]
    store, whole = project.opened(), TargetStore.open(project.folder / "stores/whole.zarr")
    assert store.fieldsets["image/teacher"].batch_size == 16
    assert store.halved("image/teacher") == {0: 4}
    shown = project.call("show", "stores/tiny.zarr").out
    assert "memory ran out: 1 shards were computed with at most 4 views at a time" in shown
    assert whole.halved("image/teacher") == {}
    assert "memory ran out" not in project.call("show", "stores/whole.zarr").out
    for name in ("features", "patches"):
        values = (one.load(f"image/teacher/{name}", range(30)) for one in (store, whole))
        np.testing.assert_array_equal(*values)


def test_a_view_that_does_not_fit_is_one_line(project) -> None:
    limited(project, 0)
    message = project.error_of(*project.arguments())
    assert "image/teacher: memory ran out on a single view; choose a smaller model" in message
    assert project.opened().missing("image/teacher") == [0]


def test_a_lower_precision_is_compared_with_float32(project) -> None:
    project.encoders["image"]["teacher"]["precision"] = "bfloat16"
    project.configure()
    outcome = project.call(*project.arguments())
    assert outcome.exit_code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "cosine of bfloat16 with float32" in line]
    cosines = project.opened().fieldsets["image/teacher"].provenance["cosine_with_float32"]
    assert set(cosines) == {"patch_embeddings", "features", "logits"}
    for name, found in cosines.items():
        assert 0.9 < found["least"] <= found["mean"] < 1
        assert f"{name} {found['mean']:.6f} (least {found['least']:.6f})" in line
    told = line.partition("float32: ")[2]
    assert f"cosine with float32: {told}" in project.call("show", "stores/tiny.zarr").out
    # It is no part of what makes the FieldSet what it is.
    assert project.precompute().endswith("was complete already\n")


def test_float32_is_compared_with_nothing(project) -> None:
    assert "cosine of" not in project.call(*project.arguments()).err
    assert "cosine with float32" not in project.call("show", "stores/tiny.zarr").out


def test_nothing_that_can_be_decoded_is_nothing_to_compare(project) -> None:
    for file in (project.data / "images").glob("*.png"):
        file.write_bytes(b"no image")
    project.encoders["image"]["teacher"]["precision"] = "bfloat16"
    project.configure()
    assert "with float32: nothing could be compared" in project.call(*project.arguments()).err
    assert len(project.opened().quarantined("image/teacher")) == 30


def test_cosines_are_of_vectors_that_are_finite_and_not_zero() -> None:
    one = np.array([[[1.0, 0.0], [0.0, 0.0]], [[np.inf, 1.0], [1.0, 1.0]]])
    other = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]])
    assert cosine(one, other) == {"mean": pytest.approx((1 + 0.5**0.5) / 2), "least": pytest.approx(0.5**0.5)}
    assert cosine(one[:, :0], other[:, :0]) == {}


def worker(project: Any, decoders: Decoder | None = None) -> ShardWorker:
    """That of the large project's teacher, whose store is there."""
    store, settings = project.opened(), project.settings()
    task = plan.task(
        store.fieldsets["image/teacher"], settings.encoders.image["teacher"], settings.views, store.manifest, store
    )
    return ShardWorker(store, task, settings.workers, decoders)


def uncommit(project: Any) -> dict[str, bytes]:
    """A whole store of three shards without any commit of them; returns what it was."""
    whole: dict[str, bytes] = project.restore()
    for shard in range(3):
        project.opened().discard("image/teacher", shard)
    return whole


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("write")]


@pytest.mark.parametrize("end", [KeyboardInterrupt, GeneratorExit], ids=lambda end: end.__name__)
def test_a_run_that_ends_early_has_written_what_it_was_writing(large, end: type[BaseException]) -> None:
    whole = uncommit(large)
    computing, num_rows = worker(large).compute([0, 1, 2]), 0
    while num_rows < 256:  # the first shard is full, and is being written
        num_rows += next(computing).num_rows
    with pytest.raises(end):
        computing.throw(end)
    assert not writers()
    assert large.opened().missing("image/teacher") == [1, 2]
    large.precompute()
    assert large.content() == whole


def test_an_error_of_the_writer_ends_the_run_with_its_own_line(large) -> None:
    whole = uncommit(large)
    blocked = large.store / "image/teacher/logits/c/1"
    shutil.rmtree(blocked)
    blocked.write_bytes(b"in the way")
    message = large.error_of(*large.arguments())
    assert message == "error: [Errno 20] Not a directory: 'stores/tiny.zarr/image/teacher/logits/c/1/0'"
    assert 1 in large.opened().missing("image/teacher")
    assert not writers()
    blocked.unlink()
    large.precompute()
    assert large.content() == whole


def test_a_worker_that_is_let_go_of_takes_its_weights_and_threads_with_it(large) -> None:
    uncommit(large)
    working = worker(large)
    for progress in working.compute([0]):
        assert progress.num_rows <= 256
    gone, threads = weakref.ref(working._forward.model), threading.active_count()
    gc.disable()
    try:
        del working
        assert gone() is None
        deadline = time.monotonic() + 10
        while threading.active_count() >= threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() < threads
    finally:
        gc.enable()


def test_the_next_shard_is_decoded_while_one_is_computed(large) -> None:
    uncommit(large)
    asked: list[range] = []

    class Asked(Decoder):
        def submit(self, rows: Any, num_views: int) -> Any:
            asked.append(rows)
            return super().submit(rows, num_views)

    store, settings = large.opened(), large.settings()
    view = settings.encoders.image["teacher"].view()
    asking = Asked(store.manifest, "image", view, settings.views, 1)
    computing, num_rows = worker(large, asking).compute([0, 1]), 0
    while num_rows < 240:
        num_rows += next(computing).num_rows
    assert num_rows < 256
    assert max(rows.stop for rows in asked) > 256
    computing.close()
