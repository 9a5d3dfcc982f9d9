"""Who may import whom: the contracts of pyproject.toml, held by import-linter."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_imports_point_down() -> None:
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("program", ["pipeline", "trainer", "eval"])
def test_help_imports_no_heavy_library(program: str) -> None:
    """Importing torch alone would take longer than a person waits for help."""
    heavy = "{'torch', 'ray', 'zarr', 'numpy', 'pydantic', 'pyarrow', 'faiss', 'transformers'}"
    check = f"import sys, {program}.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
