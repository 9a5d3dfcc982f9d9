from pathlib import Path

from contract import commits
from contract.commits import Commit, Quarantined
from contract.storage.folder import Folder

COMMIT = Commit(
    fingerprint="f",
    items="i",
    rows=3,
    constants={"q.scale": 7},
    files={"q": {"size_bytes": 5, "crc32c": 6}},
    quarantined=(Quarantined(row=1, id="i1", file="1.jpg", reason="cut short"),),
    clipped={"q": 2},
    error={"q": {"relative_rmse": 1e-05}},
)


def test_commit_is_read_as_it_was_written() -> None:
    assert Commit.load(COMMIT.dump()) == COMMIT


def test_damaged_commit_commits_nothing() -> None:
    content = COMMIT.dump()
    assert Commit.load(content[:-2]) is Commit.load(b"") is Commit.load(b"{}") is None
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        assert Commit.load(bytes(damaged)) is None


def test_commits_are_found_by_shard_in_order(tmp_path: Path) -> None:
    files = Folder(tmp_path)
    for shard in (11, 2):
        files.write(commits.place("image/teacher", shard), COMMIT.dump())
    files.write(commits.place("image/teacher", 3), b"damaged")
    files.write(commits.place("image/teachers", 4), COMMIT.dump())
    files.write("precept/commits/image/teacher/notes.txt", b"mine")
    assert list(commits.read_all(files, "image/teacher")) == [2, 11]
    assert commits.read(files, "image/teacher", 11) == COMMIT
    assert commits.read(files, "image/teacher", 3) is commits.read(files, "image/teacher", 5) is None
    assert commits.read_all(files, "image/nothing") == {}
