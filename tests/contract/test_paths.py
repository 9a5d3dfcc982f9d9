from pathlib import Path

import pytest

from contract.paths import inside
from contract.views import UndecodableError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/images").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for file in ("root/images/a.jpg", "outside/secret.jpg"):
        (tmp_path / file).write_bytes(b"")
    return tmp_path / "root"


@pytest.mark.parametrize(
    "file", ["images/a.jpg", "images//a.jpg", "./images/a.jpg", "images/nothing.jpg", "images/..jpg", ""]
)
def test_file_in_the_root_is_the_root_and_its_name(root: Path, file: str) -> None:
    assert inside(root, file) == root / file


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../outside/secret.jpg", "images/../../outside/secret.jpg", "images/.."]
)
def test_path_out_of_the_root_is_refused(root: Path, file: str) -> None:
    with pytest.raises(UndecodableError, match="leads out of the data root"):
        inside(root, file)


@pytest.mark.parametrize("file", ["link.jpg", "folder/secret.jpg", "folder"])
def test_link_out_of_the_root_is_refused(root: Path, file: str) -> None:
    (root / "link.jpg").symlink_to(root.parent / "outside/secret.jpg")
    (root / "folder").symlink_to(root.parent / "outside")
    with pytest.raises(UndecodableError, match="leads out of the data root, through a link"):
        inside(root, file)


def test_folder_beside_the_root_whose_name_begins_with_its_own_is_outside(root: Path) -> None:
    (root.parent / "root2").mkdir()
    (root / "link").symlink_to(root.parent / "root2")
    with pytest.raises(UndecodableError, match="through a link"):
        inside(root, "link/a.jpg")


def test_link_within_the_root_may_be_followed(root: Path) -> None:
    (root / "b.jpg").symlink_to("images/a.jpg")
    (root / "val").symlink_to(root / "images")
    assert inside(root, "b.jpg") == root / "b.jpg"
    assert inside(root, "val/a.jpg") == root / "val/a.jpg"


def test_root_may_be_a_link_itself(root: Path) -> None:
    (root.parent / "data").symlink_to(root)
    assert inside(root.parent / "data", "images/a.jpg") == root.parent / "data/images/a.jpg"


def test_relative_root_is_that_of_the_folder_one_is_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert inside(Path("root"), "images/a.jpg") == Path("root/images/a.jpg")


def test_nul_and_links_in_a_circle_are_no_crash(root: Path) -> None:
    with pytest.raises(UndecodableError, match="NUL"):
        inside(root, "a\0.jpg")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert inside(root, "one") == root / "one"
