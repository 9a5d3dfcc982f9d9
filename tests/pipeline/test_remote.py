"""The programs with a store at s3://: computed, shown, damaged, repaired, trained from and evaluated."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML

Run = Callable[..., tuple[str, str]]

# The shipped teacher over a few scenes, whose rows are so small that a shard holds them all.
SCENES = {
    "name": "scenes",
    "title": "A few scenes",
    "homepage": "docs/scenes.md",
    "licence": "Apache-2.0",
    "source": {"kind": "scenes", "seed": 0, "num_train": 64, "num_val": 16, "num_test": 16},
}

LOCAL = ("--engine", "local")


def call(program: str, arguments: Sequence[str]) -> int:
    """Run `PROGRAM ARGUMENTS` in this process; the exit code."""
    main = importlib.import_module(f"{program}.__main__").main
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("sys.argv", [program, *arguments])
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def precompute(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line that makes a store of the scenes, which are drawn once; without engine and store."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "few.yaml").open("w") as file:
        YAML(typ="safe").dump(SCENES, file)
    return ["precompute", "--dataset", f"{folder}/few.yaml", "--data-root", f"{folder}/few", "--config", "scenes"]


@pytest.fixture(scope="module")
def local(precompute: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store on this machine's disk."""
    path = tmp_path_factory.mktemp("local") / "few.zarr"
    assert call("pipeline", [*precompute, *LOCAL, "--store", str(path)]) == 0
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a program in a folder of the test's own: (stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(program: str, *arguments: str, fails: bool = False) -> tuple[str, str]:
        capsys.readouterr()
        code = call(program, arguments)
        out, err = capsys.readouterr()
        assert bool(code) == fails, err
        return out, err

    return run


def content(store: Path | str, s3=None) -> dict[str, bytes]:
    """Every file of a store; the command line, which names the store, taken out with the checksums over it."""
    if isinstance(store, Path):
        files = {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}
    else:
        root = store.removeprefix("s3://")
        files = {place[len(root) + 1 :]: s3.client().cat_file(place) for place in s3.client().find(root)}
    return {
        name: b"\n".join(line for line in data.splitlines() if b'"command"' not in line and b'"crc32c"' not in line)
        for name, data in files.items()
        if name != "precept/checksums.json"
    }


def test_store_at_a_url_is_written_shown_verified_and_repaired(
    bucket: str, run: Run, precompute: list[str], local: Path, s3
) -> None:
    url = f"{bucket}/few.zarr"
    assert "to compute" in run("pipeline", "plan", *precompute[1:], "--store", url)[0]
    assert f"{url} is complete\n" in run("pipeline", *precompute, *LOCAL, "--store", url)[0]
    assert f"{url} was complete already" in run("pipeline", *precompute, *LOCAL, "--store", url)[0]
    assert f"{url}: 0 rows to compute" in run("pipeline", "plan", *precompute[1:], "--store", url)[0]
    assert f"{url}: dataset scenes" in run("pipeline", "show", url)[0]
    assert "as they were written" in run("pipeline", "verify", url)[0]
    assert content(url, s3) == content(local)

    key = next(key for key in content(local) if key.startswith("image/teacher/logits/c/0"))
    shard = bytearray(s3.client().cat_file(f"{url}/{key}"))
    shard[10] ^= 1
    s3.client().pipe_file(f"{url}/{key}", bytes(shard))
    assert f"`pipeline repair {url}` computes them again" in run("pipeline", "verify", url, fails=True)[1]
    s3.client().pipe_file(f"{url}/zarr.json", b"{}")
    assert f"`pipeline repair {url}` mends it" in run("pipeline", "verify", url, fails=True)[1]
    assert f"{url} is whole" in run("pipeline", "repair", url, *LOCAL)[0]
    assert "as they were written" in run("pipeline", "verify", f"{url}/")[0]
    assert content(url, s3) == content(local)


@pytest.fixture
def served(local: Path) -> Iterator[str]:
    """The URL of the local store on a web server."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(local.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{local.name}"
        server.shutdown()
        thread.join()


def test_training_from_a_url_equals_training_from_the_disk_and_is_resumed(
    bucket: str, served: str, run: Run, local: Path, tmp_path: Path, s3
) -> None:
    url = f"{bucket}/few.zarr"
    s3.client().put(str(local), url, recursive=True)
    figures = {}
    for name, store in {"remote": url, "web": served, "local": str(local)}.items():
        run("trainer", "run", "--store", store, "--run", name, "--set", "epochs=1", "--set", "batch_size=16")
        figures[name] = run("eval", "retrieval", "--run", name)[0].splitlines()[2:9]
    assert "text-to-image" in figures["local"][1]
    assert figures["remote"] == figures["web"] == figures["local"]

    record = tmp_path / "remote/run.json"
    assert f'"path": "{url}"' in record.read_text()
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    run("trainer", "run", "--run", "remote", "--resume")
    assert '"finished": true' in record.read_text()
    assert not list(tmp_path.glob("s3:*"))  # a URL that was taken for a path


def test_recipe_may_name_the_url(bucket: str, run: Run, local: Path, tmp_path: Path, s3) -> None:
    url = f"{bucket}/few.zarr"
    s3.client().put(str(local), url, recursive=True)
    recipe = (Path(__file__).parents[2] / "configs/trainer/shre.yaml").read_text()
    stream = f"streams: [{{pair: image-text, store: '{url}'}}]"
    (tmp_path / "recipe.yaml").write_text(recipe.replace("streams: auto", stream))
    run("trainer", "run", "--config", "recipe.yaml", "--run", "run", "--set", "epochs=1")
    assert f'"path": "{url}"' in (tmp_path / "run/run.json").read_text()
