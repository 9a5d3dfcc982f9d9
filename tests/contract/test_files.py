import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.files import MOST_PARTS, replace_file


def test_parts_lie_one_after_the_other_however_many_they_are(tmp_path: Path) -> None:
    parts = [np.full(number % 3, number % 251, np.uint8).tobytes() for number in range(2 * MOST_PARTS + 5)]
    replace_file(tmp_path / "a", *parts)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        replace_file(tmp_path / "a", b"new", None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_full_disk_leaves_what_was_there(tmp_path: Path, full_disk) -> None:
    replace_file(tmp_path / "a", b"old")
    with full_disk(5000), pytest.raises(OSError, match="File too large"):
        replace_file(tmp_path / "a", bytes(4000), bytes(4000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_whoever_has_mapped_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", bytes(range(256)) * 64)
    with (tmp_path / "a").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    replace_file(tmp_path / "a", b"shorter")
    assert mapped[:] == bytes(range(256)) * 64


KILLED = """
import os, signal, sys
from pathlib import Path
from contract import files
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
files.replace_file(Path(sys.argv[1]), b"new")
"""


def test_killed_writer_leaves_what_was_there_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    replace_file(tmp_path / "a", b"newer")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"newer"}
