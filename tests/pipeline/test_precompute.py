"""The run: equal values whatever the engine, and nothing lost when it is killed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from contract.store import TargetStore
from contract.views import Item
from encoders import TimmImage


def test_stored_rows_equal_direct_calls_of_timm(large) -> None:
    large.restore()
    store, rows = large.opened(), [0, 255, 256, 599]
    args = large.encoders["image"]["teacher"]["model_args"]
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **args).eval()
    model.load_state_dict(load_file(large.folder / "teacher.safetensors"))
    view = TimmImage(model="vit_tiny_patch16_224", model_args=args).view()
    images = [view.load(Item(id="", file=large.data / f"images/{row}.png")) for row in rows]
    with torch.inference_mode():
        batch = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        logits, patches = model(batch), model.patch_embed(batch)
    np.testing.assert_allclose(store.load("image/teacher/logits", rows), logits, atol=5e-3)
    scale = store.constants("image/teacher")["patch_embeddings.scale"]
    stored = store.load("image/teacher/patch_embeddings", rows)
    assert (np.abs(stored - patches.numpy()) <= scale / 2 + 1e-5).mean() > 0.999  # a few are clipped


def test_run_that_is_killed_again_and_again_continues_to_the_same_bytes(large) -> None:
    # Of int8, with augmented views and with inputs that can't be decoded. The folder of a shard's first file is
    # made just before that file is written, in the background of the next shard.
    for shard in range(3):
        large.run_until((large.store / f"image/teacher/patch_embeddings/c/{shard}").exists)
        assert set(large.opened().missing("image/teacher")) - {shard} == set(range(shard + 1, 3))
    large.precompute()
    assert large.content() == large.restore()


def test_fieldset_without_any_value_gives_way_to_another(project) -> None:
    # What a run leaves that was killed before its first shard.
    project.precompute()
    logits = project.opened().load("image/teacher/logits", range(30))
    shutil.rmtree(project.store / "precept/commits/image")
    project.precompute("--set", "encoders.image.teacher.encodings.logits.kind=int8")
    assert project.opened().field("image/teacher/logits").encoding.kind == "int8"
    np.testing.assert_allclose(project.opened().load("image/teacher/logits", range(30)), logits, atol=0.02)


def test_second_teacher_is_added_and_touches_nothing(project) -> None:
    project.precompute()
    before = project.content()
    second = {"kind": "timm", "model": "resnet10t", "model_args": {"num_classes": 5}, "checkpoint": "resnet.pt"}
    second |= {"preprocessing": {"input_size": [3, 32, 32]}}
    torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), project.folder / "resnet.pt")
    project.write("second.yaml", {"encoders": {"image": {"resnet": second}}, "gate": {"num_samples": 0}})
    assert "image/resnet: 30 rows" in project.precompute("--config", "second.yaml")
    after = project.content()
    assert {name for name in before if after[name] != before[name]} == {"precept/checksums.json"}
    assert all("image/resnet/" in name for name in after.keys() - before.keys())
    shown = project.call("show", "stores/tiny.zarr").out
    assert "image/teacher: complete" in shown
    assert "image/resnet: complete" in shown
    assert project.opened().load("image/resnet/logits", [29]).shape == (1, 5)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Ray takes seconds to start; every run of this module joins the same session."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=2)
    yield
    ray.shutdown()


def test_ray_stores_the_same_values(large, ray_session) -> None:
    large.precompute("--engine", "ray", "--set", "workers.actors=2")
    ray, local = large.opened(), TargetStore.open(large.folder / "whole.zarr")
    rows = range(600)
    for view in (0, 1):
        for name in ("features", "logits", "view_parameters"):
            values = (store.load(f"image/teacher/{name}", rows, views=view) for store in (ray, local))
            np.testing.assert_allclose(*values, atol=2e-3)
    step = local.constants("image/teacher")["patch_embeddings.scale"].max()
    values = (store.load("image/teacher/patch_embeddings", rows, views=1) for store in (ray, local))
    np.testing.assert_allclose(*values, atol=1.01 * step)
    texts = (store.load("text/tokens/token_embeddings", range(1200)) for store in (ray, local))
    np.testing.assert_array_equal(*texts)
    assert {key: fieldset.fingerprint for key, fieldset in ray.fieldsets.items()} == {
        key: fieldset.fingerprint for key, fieldset in local.fieldsets.items()
    }
    assert ray.quarantined("image/teacher") == local.quarantined("image/teacher")


TOWER = """
import torch


class Greys(torch.nn.Module):
    def forward(self, pixels):
        return {"features": pixels.mean(dim=(2, 3))}


def greys():
    return Greys()
"""


def test_actors_find_a_users_own_module_in_the_folder_of_the_run(project, ray_session) -> None:
    (project.folder / "greys_of_a_user.py").write_text(TOWER)
    view = {"input_size": [3, 16, 16], "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    teacher = {"kind": "custom", "factory": "greys_of_a_user:greys", "preprocessing": view}
    project.encoders = {"image": {"teacher": teacher}}
    project.configure()
    project.precompute("--engine", "ray")
    ray = project.opened().load("image/teacher/features", range(30))
    project.precompute("--store", "stores/local.zarr")
    local = TargetStore.open(project.folder / "stores/local.zarr").load("image/teacher/features", range(30))
    np.testing.assert_allclose(ray, local, atol=1e-3)
    assert ray.any(axis=1).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["workers.decoders=5"], "workers.resources.decoder: 5 with CPU 1 each are wanted, .* have room for 2;"),
        (["workers.resources.teacher.num_gpus=1"], "workers.resources.teacher: 1 with GPU 1 each .* room for 0;"),
        (
            ["workers.decoders=1", "workers.resources.decoder.custom.reading=2"],
            "workers.resources.decoder: 1 with CPU 1, reading 2 each .* room for 0; change that, workers.actors or",
        ),
    ],
)
@pytest.mark.timeout(120)
def test_actors_for_which_there_is_no_room_are_one_line(
    project, ray_session, settings: list[str], told: str
) -> None:
    message = project.error_of(
        *project.arguments("--engine", "ray"), *(part for setting in settings for part in ("--set", setting))
    )
    assert re.search(told, message), message


def test_decoders_feed_a_teacher_the_same_views(project, ray_session) -> None:
    decoders = ("--set", "workers.decoders=2", "--set", "workers.resources.decoder.num_cpus=0.5")
    (project.data / "images/3.png").write_bytes(b"no image")
    project.precompute("--engine", "ray", "--views", "2", *decoders)
    project.precompute("--store", "stores/local.zarr", "--views", "2")
    ray, local = project.opened(), TargetStore.open(project.folder / "stores/local.zarr")
    for name in ("features", "logits", "view_parameters"):
        values = (store.load(f"image/teacher/{name}", range(30), views=2) for store in (ray, local))
        np.testing.assert_allclose(*values, atol=2e-3)
    assert ray.quarantined("image/teacher") == local.quarantined("image/teacher")
    texts = (store.load("text/tokens/token_embeddings", range(60)) for store in (ray, local))
    np.testing.assert_array_equal(*texts)


def test_error_inside_an_actor_leaves_as_one_line(project, ray_session) -> None:
    (project.folder / "teacher.safetensors").write_bytes(b"no weights")
    assert "error: checkpoint" in project.error_of(*project.arguments("--engine", "ray"))
