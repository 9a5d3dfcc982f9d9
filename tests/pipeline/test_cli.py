"""What someone at a terminal sees of `pipeline`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PLAN = ("plan", "--dataset", "tiny.yaml", "--config", "encoders.yaml")


def test_commands_are_listed(project) -> None:
    out = project.call("--help").out
    assert all(command in out for command in ("precompute", "plan", "show", "verify", "repair", "export", "import"))


def test_first_run_computes_and_second_finds_it_done(project) -> None:
    exit_code, out, err = project.call(*project.arguments())
    assert exit_code == 0
    assert "image/teacher: 30 rows in" in out
    assert "image/teacher" in err
    assert project.precompute() == "stores/tiny.zarr was complete already\n"


def test_plan_tells_what_would_be_written_and_writes_nothing(project) -> None:
    exit_code, out, _ = project.call(*PLAN)
    assert exit_code == 0
    assert "stores/tiny.zarr: 90 rows to compute" in out
    assert not project.store.parent.exists()
    project.precompute()
    assert "stores/tiny.zarr: 0 rows to compute" in project.call(*PLAN).out


def test_plan_loads_no_weights(project) -> None:
    (project.folder / "teacher.safetensors").write_bytes(b"not weights")
    exit_code, out, _ = project.call(*PLAN)
    assert exit_code == 0
    assert "image/teacher" in out


def test_plan_counts_the_bytes_of_views_and_encodings(project) -> None:
    small = ["encodings.patch_embeddings.kind=pixels", "encodings.features.kind=int8", "encodings.logits.kind=topk"]
    settings = [f"--set=encoders.image.teacher.{one}" for one in [*small, "encodings.logits.k=2"]]
    pixels, features, logits, parameters = 16 * 16 * 3, 32, 2 * (2 + 2) + 2, 8 * 4
    expected = 3 * (pixels + features + logits + parameters)
    (line,) = [
        line for line in project.call(*PLAN, "--views", "2", *settings).out.splitlines() if "teacher" in line
    ]
    assert f"{expected:,}" in line.split()
    project.precompute("--views", "2", *settings)
    shown = project.call("show", "stores/tiny.zarr").out
    assert "views: the evaluation view and 2 augmented, of every row" in shown
    assert (
        f"patch_embeddings: [16, 32] as pixels height=16 width=16, {3 * pixels:,} bytes a sample, error: " in shown
    )
    assert f"features: [32] as int8, {3 * features} bytes a sample, error: one minus cosine" in shown
    assert f"logits: [7] as topk k=2, {3 * logits} bytes a sample, error: kl nats" in shown
    assert "view_parameters: [8] as float32, 96 bytes a sample (parameters ['top', 'left'" in shown


def test_broken_and_missing_photographs_are_quarantined_and_do_not_stop_the_run(project) -> None:
    (project.data / "images/3.png").write_bytes(b"no image")
    (project.data / "images/4.png").unlink()
    assert "2 inputs could not be decoded" in project.precompute()
    store = project.opened()
    assert [(entry.id, entry.file) for entry in store.quarantined("image/teacher")] == [
        ("3", "images/3.png"),
        ("4", "images/4.png"),
    ]
    assert not store.load("image/teacher/logits", [3, 4]).any()
    assert store.usable("image").sum() == 28
    shown = project.call("show", "stores/tiny.zarr").out
    assert "quarantined: 2" in shown
    assert "4  images/4.png  the file is missing" in shown


def test_show_tells_fields_and_provenance(project) -> None:
    project.precompute()
    out = project.call("show", "stores/tiny.zarr").out
    assert "image: 30 items (train 24, val 3, test 3)" in out
    assert "patch_embeddings: [16, 32] as float16, 1,024 bytes a sample, error: one minus cosine" in out
    assert "grid [4, 4]" in out
    assert "image-text: 60 pairs" in out
    assert "by `pipeline precompute --dataset tiny.yaml --config encoders.yaml --engine local`" in out


def test_clipped_values_are_counted(project) -> None:
    # Scales of sequences are measured on 256 views; here all that these are of is black.
    project.describe(range(300))
    sampled = np.linspace(0, 299, 256).astype(int)
    for number in range(300):
        grey = 0 if number in sampled else 255
        Image.new("L", (16, 16), grey).convert("RGB").save(project.data / f"images/{number}.png")
    out = project.precompute("--set", "encoders.image.teacher.encodings.patch_embeddings.kind=int8")
    assert "image/teacher/patch_embeddings: " in out
    assert "values lay beyond what was calibrated, and were clipped" in out
    assert "values clipped" in project.call("show", "stores/tiny.zarr").out


def test_dataset_that_is_not_there_says_where_it_looked_and_what_it_expects(project) -> None:
    before = sorted(project.folder.rglob("*"))
    message = project.error_of("precompute", "--dataset", "coco")
    assert "data/coco/dataset_coco.json" in message
    assert "--data-root DIR" in message
    assert "train2014/ and val2014/" in message
    assert sorted(project.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "coca"], "did you mean `coco`"),
        (["--config", "nothing.yaml"], "nothing.yaml: no such file"),
        (["--data-root", "tiny.yaml"], "is a file, not a folder"),
        (["--views", "-1"], "Invalid value for '--views'"),
        (["--set", "views.num=-1"], "--set views.num=-1: `views.num`: input should be greater than or equal to 0"),
        (["--set", "gate.num_samples=-1"], "`gate.num_samples`: input should be greater than or equal to 0"),
        (["--set", "views.image.scale=[0, 1]"], "scale (0.0, 1.0) is not a range above 0"),
        (["--set", "nonsense"], "expected a.b=value"),
        (["--set", "encoders.image.a/b.kind=timm"], "encoders.image.a/b"),
        (["--set", "encoders.audio.patches.kind=log_mel"], "no audio items"),
    ],
)
def test_mistakes_are_one_line_each(project, arguments: list[str], told: str) -> None:
    assert told in project.error_of(*project.arguments(*arguments))
    assert not project.store.exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("modle=x", "--set encoders.image.teacher.modle=x: unknown key.*did you mean `model`"),
        ("batch_size=-1", "greater than 0, found -1"),
        ("batch_size=many", "valid integer"),
        ("encodings.logits.kind=lookup", r"encodings\.logits.*'lookup'.*'int8', 'topk'$"),
        ("encodings.features.kind=topk", r"encodings\.features.*'topk'.*'float8', 'int8'$"),
        ("encodings.logits.kind=int9", r"encodings\.logits.*'int9'.*'int8', 'topk'$"),
        ("encodings.depth.kind=int8", "unknown key `encoders.image.teacher.encodings.depth`"),
        ("encodings.logits={kind: topk, k: 0}", "encodings.logits.k`: input should be greater than or equal to 1"),
        ("encodings.patch_embeddings={kind: pixels, patch: 8}", "unknown key `encoders.image.teacher.encodings.pa"),
    ],
)
def test_mistakes_in_an_encoder_are_one_line_each(project, setting: str, told: str) -> None:
    assert re.search(told, project.error_of(*project.arguments("--set", f"encoders.image.teacher.{setting}")))


def test_encodings_that_a_model_cannot_have_are_one_line(project) -> None:
    pixels = {"encodings": {"patch_embeddings": {"kind": "pixels"}}}
    project.encoders["image"] = {"net": {"kind": "timm", "model": "resnet10t", "checkpoint": "none"} | pixels}
    project.configure()
    message = project.error_of(*PLAN)
    assert "the tokens of timm model resnet10t are not a linear map of square patches" in message
    lookup = {"encodings": {"token_embeddings": {"kind": "lookup"}}}
    project.encoders = {"text": {"words": {"kind": "huggingface_text", "model": "bert", "layer": "last"} | lookup}}
    project.configure()
    assert "lookup stores rows of the word-embedding table, and layer is 'last'" in project.error_of(*PLAN)


def test_another_encoder_under_the_same_name_is_refused(project) -> None:
    project.precompute()
    changes = ["--set", "encoders.image.teacher.preprocessing.mean=[0, 0, 0]"]
    message = project.error_of(*project.arguments(*changes))
    assert "image/teacher was made by another encoder or setting: recipe.mean" in message
    changes = ["--set", "encoders.image.teacher.encodings.logits.kind=int8"]
    message = project.error_of(*project.arguments(*changes))
    assert "another encoder or setting: fields.logits.encoding.kind: 'float16', not 'int8'" in message


def test_stores_that_are_not_there_are_one_line(project) -> None:
    for verb in ("show", "verify", "repair"):
        assert "no target store" in project.error_of(verb, "nowhere.zarr")
    assert not Path(project.folder / "nowhere.zarr").exists()


def test_values_that_are_not_finite_name_the_sample(project, spoil) -> None:
    spoil(project, "head.bias", np.nan)
    message = project.error_of(*project.arguments())
    assert "logits of sample '0' and perhaps others: 30 of 210 values are not finite" in message


def test_too_small_a_disk_is_said_before_anything_runs(project, monkeypatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    assert "0.0 MB are free" in project.error_of(*project.arguments())
    assert not project.store.exists()
