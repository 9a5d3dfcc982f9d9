"""The other end of `with_mosaic`: its environment, its process, and the questions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peers import Skipped

REQUIREMENT = "mosaicml-streaming==0.13.0"
BENCHMARKS = Path(__file__).resolve().parents[1]


@contextmanager
def mosaic(python: Path | None, source: Path, num_rows: int, folder: Path) -> Iterator[Callable[[], Any]]:
    """A function that has the process time one batch; without `python`, an environment is made in `folder`."""
    python = python or _make_environment(folder / "environment")
    arguments: list[str | Path] = [source.absolute(), str(num_rows), folder.absolute()]
    command = [python.absolute(), "-m", "peers.with_mosaic", *arguments]
    process = subprocess.Popen(command, cwd=BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None

    def ask() -> Any:
        try:
            questions.write("\n")
            questions.flush()
            return json.loads(answers.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise Skipped(f"its process ended with exit code {process.wait()}; why stands on stderr") from None

    try:
        yield ask
    finally:
        with suppress(BrokenPipeError):
            questions.close()
        process.wait()


def _make_environment(folder: Path) -> Path:
    binaries = [str(Path(sys.executable).parent), str(BENCHMARKS.parent / ".venv/bin"), os.environ.get("PATH", "")]
    uv = shutil.which("uv", path=os.pathsep.join(binaries))
    if uv is None:
        raise Skipped(f"no uv to make its environment with; give --mosaic-python, one that holds {REQUIREMENT}")
    python = folder / "bin/python"
    for arguments in (
        ["venv", "--python", sys.executable, str(folder)],
        ["pip", "install", "--python", str(python), REQUIREMENT],
    ):
        done = subprocess.run([uv, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise Skipped(f"uv {' '.join(arguments)}: {' '.join(done.stderr.split())[-300:]}")
    return python
