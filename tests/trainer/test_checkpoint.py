from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from contract.errors import RunError
from trainer import checkpoint


def test_checkpoint_gives_back_tensors_and_state(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    tensors = {"a.b": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3.0)}
    checkpoint.save(path, tensors, {"step": 3, "best": 0.1})
    found, state = checkpoint.load(path)
    assert state == {"step": 3, "best": 0.1}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\x80\x04nonsense", b"\x00" * 64])
def test_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"last\.safetensors: not a readable checkpoint"):
        checkpoint.load(path)


def test_tensors_are_found_under_their_prefix() -> None:
    tensors = {"weight": torch.zeros(1)}
    put = checkpoint.put_under("student", tensors)
    assert list(put) == ["student.weight"]
    assert checkpoint.under("student", {**put, "students.weight": torch.ones(1)}).keys() == {"weight"}


def test_checkpoint_of_the_first_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"precept": '{"step": 7}'})
    found, state = checkpoint.load(path)
    assert (found["a"].tolist(), state) == ([1.0, 1.0], {"step": 7})
