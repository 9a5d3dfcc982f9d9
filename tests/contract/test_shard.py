from pathlib import Path

import numpy as np
import pytest

from contract.shard import DamagedShardError, ShardLayout, ShardMap, replace_file, write_shard

LAYOUT = ShardLayout(dtype=np.dtype("<f4"), row_shape=(3,), rows_per_shard=8, rows_per_chunk=2)


def test_file_has_the_size_that_is_told_beforehand(tmp_path: Path) -> None:
    for num_rows in (1, 2, 7, 8):
        written = write_shard(tmp_path / "0", np.ones((num_rows, 3), np.float32), LAYOUT)
        assert written["size_bytes"] == LAYOUT.file_bytes(num_rows) == (tmp_path / "0").stat().st_size


def test_shard_whose_chunks_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    import google_crc32c

    write_shard(tmp_path / "0", np.ones((8, 3), np.float32), LAYOUT)
    content = bytearray((tmp_path / "0").read_bytes())
    start = 4 * LAYOUT.chunk_bytes
    content[start : start + 8] = (LAYOUT.chunk_bytes).to_bytes(8, "little")
    content[-4:] = google_crc32c.value(bytes(content[start:-4])).to_bytes(4, "little")
    (tmp_path / "0").write_bytes(content)
    with pytest.raises(DamagedShardError, match="do not lie in order"):
        ShardMap(tmp_path / "0", LAYOUT, 8)


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        replace_file(tmp_path / "a", None)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
