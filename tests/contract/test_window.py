import gc
from pathlib import Path

import numpy as np

from contract.files import replace_file
from contract.shard import ShardLayout, shard_content
from contract.window import Window

LAYOUT = ShardLayout(dtype=np.dtype("<i4"), row_shape=(3,), rows_per_shard=8, rows_per_chunk=4)


def window(folder: Path, rows: np.ndarray) -> Window:
    """The rows in shards of eight, all of them put into a window."""
    made = Window(LAYOUT, -(-len(rows) // 8))
    for number, start in enumerate(range(0, len(rows), 8)):
        part = rows[start : start + 8]
        replace_file(folder / str(number), *shard_content(part, LAYOUT)[0])
        made.put(number, folder / str(number), len(part))
    return made


def test_rows_of_all_shards_are_one_gather(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 1000, (21, 3)).astype(np.int32)
    made = window(tmp_path, rows)
    asked = np.random.default_rng(1).integers(0, 21, 100)
    np.testing.assert_array_equal(made.rows[asked // 8, asked % 8 // 4, asked % 4], rows[asked])
    assert made.num_rows.tolist() == [8, 8, 5]


def test_replaced_file_is_seen_once_it_is_put_there_again(tmp_path: Path) -> None:
    made = window(tmp_path, np.zeros((8, 3), np.int32))
    replace_file(tmp_path / "0", *shard_content(np.ones((8, 3), np.int32), LAYOUT)[0])
    assert not made.rows[0].any()  # the map of the old file is still whole
    made.forget(0)
    assert made.num_rows.tolist() == [0]
    made.put(0, tmp_path / "0", 8)
    assert made.rows[0].all()


def test_window_that_is_let_go_of_gives_its_addresses_back(tmp_path: Path) -> None:
    def mapped() -> int:
        return sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())

    made = window(tmp_path, np.zeros((20, 3), np.int32))
    assert mapped() == 3
    del made
    gc.collect()
    assert mapped() == 0
