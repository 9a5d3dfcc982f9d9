"""What someone at a terminal sees of `pipeline`."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contract.errors import one_line
from contract.store import TargetStore
from pipeline.cli import app


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `pipeline ARGUMENTS`, in this process."""

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
        one_line(),
    ):
        app(list(arguments))
    return int(caught.value.code or 0), out.getvalue(), err.getvalue()


def error_of(*arguments: str) -> str:
    """The one line that a failing command leaves."""
    code, _, err = run(*arguments)
    assert code != 0
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_commands_are_listed() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert all(command in result.output for command in ("precompute", "plan", "show", "verify"))


def test_first_run_computes_and_second_finds_it_done(project) -> None:
    code, out, err = run(*project.arguments())
    assert code == 0
    assert "image/teacher: 30 rows in" in out
    assert "image/teacher" in err
    code, out, _ = run(*project.arguments())
    assert out == "stores/tiny.zarr was complete already\n"


def test_plan_tells_what_would_be_written_and_writes_nothing(project) -> None:
    plan = ["plan", "--dataset", "tiny.yaml", "--config", "encoders.yaml"]
    code, out, _ = run(*plan)
    assert code == 0
    assert "stores/tiny.zarr: 90 rows to compute" in out
    assert not Path("stores").exists()
    run(*project.arguments())
    assert "stores/tiny.zarr: 0 rows to compute" in run(*plan)[1]


def test_plan_loads_no_weights(project) -> None:
    Path("teacher.safetensors").write_bytes(b"not weights")
    code, out, _ = run("plan", "--dataset", "tiny.yaml", "--config", "encoders.yaml")
    assert code == 0
    assert "image/teacher" in out


def test_broken_and_missing_photographs_are_quarantined_and_do_not_stop_the_run(project) -> None:
    (project.data / "images/3.png").write_bytes(b"no image")
    (project.data / "images/4.png").unlink()
    code, out, _ = run(*project.arguments())
    assert code == 0
    assert "2 inputs could not be decoded" in out
    store = TargetStore.open(Path("stores/tiny.zarr"))
    assert [(entry.id, entry.file) for entry in store.quarantined("image/teacher")] == [
        ("3", "images/3.png"),
        ("4", "images/4.png"),
    ]
    assert not store.load("image/teacher/logits", [3, 4]).any()
    assert store.usable("image").sum() == 28
    shown = run("show", "stores/tiny.zarr")[1]
    assert "quarantined: 2" in shown
    assert "4  images/4.png  the file is missing" in shown


def test_show_tells_fields_and_provenance(project) -> None:
    run(*project.arguments())
    code, out, _ = run("show", "stores/tiny.zarr")
    assert code == 0
    assert "image: 30 items (train 24, val 3, test 3)" in out
    assert "patch_embeddings: [16, 576] as float16" in out
    assert "grid [4, 4]" in out
    assert "image-text: 60 pairs" in out


def test_verify_finds_a_flipped_byte_and_the_remedy_works(project) -> None:
    run(*project.arguments())
    assert "2 shards are as they were written" in run("verify", "stores/tiny.zarr")[1]
    path = next(path for path in Path("stores/tiny.zarr/image/teacher/logits/c").rglob("*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[10] ^= 255
    path.write_bytes(content)
    message = error_of("verify", "stores/tiny.zarr")
    assert "1 of 2 shards are damaged: image/teacher shard 0" in message
    Path("stores/tiny.zarr/precept/commits/image/teacher/000000.json").unlink()
    run(*project.arguments())
    assert run("verify", "stores/tiny.zarr")[0] == 0


def test_dataset_that_is_not_there_says_where_it_looked_and_what_it_expects(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_of("precompute", "--dataset", "coco")
    assert "data/coco/dataset_coco.json" in message
    assert "--data-root DIR" in message
    assert "train2014/ and val2014/" in message
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line_each(project) -> None:
    run(*project.arguments())
    base = project.arguments()
    assert "did you mean `coco`" in error_of("precompute", "--dataset", "coca")
    assert "nothing.yaml: no such file" in error_of(*base, "--config", "nothing.yaml")
    assert "is a file, not a folder" in error_of(*base, "--data-root", "tiny.yaml")
    assert "--set encoders.image.teacher.modle=x: unknown key" in error_of(
        *base, "--set", "encoders.image.teacher.modle=x"
    )
    assert "greater than 0, found -1" in error_of(*base, "--set", "encoders.image.teacher.batch_size=-1")
    assert "encoders.image.a/b" in error_of(*base, "--set", "encoders.image.a/b.kind=timm")
    assert "`encodings" in error_of(*base, "--set", "encoders.image.teacher.encodings.logits.kind=int32").replace(
        "encoders.image.teacher.", ""
    )
    assert "valid integer" in error_of(*base, "--set", "encoders.image.teacher.batch_size=many")
    other = error_of(*base, "--set", "encoders.image.teacher.preprocessing.mean=[0, 0, 0]")
    assert "image/teacher was made by another encoder or setting: recipe.mean" in other
    assert "no target store" in error_of("show", "nowhere.zarr")
    assert "expected a.b=value" in error_of(*base, "--set", "nonsense")
    assert "no audio items" in error_of(*base, "--set", "encoders.audio.patches.kind=log_mel")


def test_changed_dataset_is_not_mixed_into_the_store(project) -> None:
    run(*project.arguments())
    captions = json.loads((project.data / "captions.json").read_text())
    captions["images"][0]["sentences"][0]["raw"] = "something else"
    (project.data / "captions.json").write_text(json.dumps(captions))
    assert "another state of it" in error_of(*project.arguments())


def test_values_that_are_not_finite_name_the_sample(project) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file("teacher.safetensors")
    weights["head.bias"][2] = float("nan")
    save_file(weights, "teacher.safetensors")
    message = error_of(*project.arguments())
    assert "image/teacher/logits of sample '0': 1 of 7 values are not finite" in message


def test_too_small_a_disk_is_said_before_anything_runs(project, monkeypatch) -> None:
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    assert "0.0 MB are free" in error_of(*project.arguments())
    assert not Path("stores/tiny.zarr").exists()
