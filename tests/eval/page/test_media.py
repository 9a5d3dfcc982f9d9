from __future__ import annotations

import base64
import io

import pytest
import soundfile
from PIL import Image

from eval.page.media import Media, shortened, visible


def decoded(uri):
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_a_picture_is_a_small_webp_in_its_own_shape(toy):
    found = Media(toy().split).exhibit("image", 0).picture
    assert found.uri.startswith("data:image/webp;base64,")
    with Image.open(decoded(found.uri)) as image:
        assert (image.format, image.size) == ("WEBP", (24, 18))


def test_a_large_picture_becomes_a_thumbnail(toy, tmp_path):
    measured = toy()
    Image.new("RGB", (1200, 600)).save(tmp_path / "media/0.png")
    found = Media(measured.split).exhibit("image", 0).picture
    assert (found.width, found.height) == (160, 80)


def test_a_picture_that_is_part_of_a_file_is_shown(toy):
    assert Media(toy().split).exhibit("image", 1).picture is not None


def test_a_long_sound_is_its_first_seconds_and_says_so(toy):
    found = Media(toy().split).exhibit("audio", 0).sound
    assert (found.duration_s, found.is_whole) == (4.0, False)
    assert found.uri.startswith("data:audio/mpeg;base64,")
    samples, rate_hz = soundfile.read(decoded(found.uri))
    assert rate_hz == 16_000
    assert len(samples) / rate_hz == pytest.approx(4, abs=0.15)
    assert len(found.uri) < 30_000


def test_a_stretch_of_a_sound_is_that_stretch(toy):
    found = Media(toy().split).exhibit("audio", 1).sound
    assert (found.duration_s, found.is_whole) == (0.5, True)


def test_an_image_is_described_by_its_first_caption(toy):
    found = Media(toy().split).exhibit("image", 3)
    assert found.text == "caption 0 of scene 3"
    assert found.name == "image i003: caption 0 of scene 3"
    assert found.label == 0


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("gone.png", "the file is missing"),
        ("broken.png", "not a readable image"),
        ("link.png", "leads out of the data root"),
    ],
)
def test_a_file_that_can_not_be_read_is_said_in_its_place(toy, tmp_path, file, reason):
    measured = toy(files={0: file})
    (tmp_path / "media/broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "media/link.png").symlink_to(__file__)
    media = Media(measured.split)
    found = media.exhibit("image", 0)
    assert found.picture is None
    assert reason in found.missing
    assert media.num_missing == 1


def test_of_a_long_file_name_the_end_is_shown(toy):
    found = Media(toy(files={0: "images/" + "x" * 200 + "/last.png"}).split).exhibit("image", 0)
    assert len(found.file) == 60
    assert found.file.startswith("…x")
    assert found.file.endswith("/last.png")


def test_a_caption_of_spaces_is_said(toy):
    assert Media(toy(captions=[" \n"]).split).exhibit("text", 0).missing == "an empty caption"


def test_each_item_is_encoded_once(toy):
    media = Media(toy().split)
    assert media.exhibit("image", 0) is media.exhibit("image", 0)
    assert list(media.pictures) == ["image-0"]
    assert media.size_bytes == len(media.pictures["image-0"].uri)


def test_a_full_page_says_what_it_leaves_out(toy):
    media = Media(toy().split, max_bytes=500)
    assert media.exhibit("image", 0).picture is not None
    assert media.exhibit("audio", 0).missing == "left out, since this page is full"
    assert media.exhibit("text", 0).text == "caption 0 of scene 0"
    assert media.num_left_out == 1
    assert media.size_bytes <= 500


def test_a_long_caption_is_cut_and_shows_it():
    assert shortened("a" * 300) == "a" * 300
    assert shortened("a" * 301) == "a" * 299 + "…"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 日本語, हिन्दी, 👩‍🚀", "plain, ünïcode, 日本語, हिन्दी, 👩‍🚀"),
        ("exe\u202egpj", "exe⟨U+202E⟩gpj"),
        ("a\x00b\x1bc\x85", "a⟨U+0000⟩b⟨U+001B⟩c⟨U+0085⟩"),
        ("one\ntwo\u2028three\tfour", "one two three four"),
        ("שלום\u200f!", "שלום\u200f!"),
    ],
)
def test_controls_are_written_out_and_scripts_stay_as_they_are(text, shown):
    assert visible(text) == shown
