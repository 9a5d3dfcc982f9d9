from __future__ import annotations

from xml.etree import ElementTree

import pytest
from PIL import Image

from eval import page

pytest.importorskip("matplotlib", reason="plots need the extra `report`")


def test_every_chart_is_a_png_and_an_svg_beside_the_page(toy, tmp_path):
    path = tmp_path / "reports/found.html"
    files = page.write(toy(), path, plots=True)
    names = [f"found-{chart}.{kind}" for chart in ("recall", "ranks", "map") for kind in ("png", "svg")]
    assert [file.name for file in files] == ["found.html", *names]
    for file in files[1:]:
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
        else:
            with Image.open(file) as image:
                assert image.width > 500


def test_equal_measurements_are_equal_files(toy, tmp_path):
    measured = toy()
    first = page.write(measured, tmp_path / "first/found.html", plots=True)
    second = page.write(measured, tmp_path / "second/found.html", plots=True)
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
