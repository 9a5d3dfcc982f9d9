import hashlib
import math
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from contract import config
from contract.errors import ConfigError
from contract.views import AudioAugmentation, AudioView, Item, UndecodableError

VIEW = AudioView(sample_rate_hz=16000, duration_s=0.5)


def tone(path: Path, rate_hz: int, duration_s: float, channels: int = 1) -> Path:
    times = np.arange(round(rate_hz * duration_s)) / rate_hz
    samples = 0.5 * np.sin(2 * np.pi * 440 * times)
    soundfile.write(path, np.stack([samples] * channels, axis=1), rate_hz)
    return path


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_becomes_mono_at_the_rate_that_is_asked_for(tmp_path: Path, rate_hz: int, channels: int) -> None:
    path = tone(tmp_path / "a.wav", rate_hz, 0.5, channels)
    samples = AudioView(sample_rate_hz=16000, duration_s=2.0).load(Item(id="a", file=path))
    assert samples.dtype == np.float32
    assert len(samples) == 8000
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert np.argmax(spectrum) * 16000 / len(samples) == pytest.approx(440, abs=2)


def test_long_sound_is_cut(tmp_path: Path) -> None:
    view = AudioView(sample_rate_hz=16000, duration_s=0.25)
    assert len(view.load(Item(id="a", file=tone(tmp_path / "a.flac", 44100, 1.0)))) == view.num_samples == 4000


def test_what_is_no_sound_says_why(tmp_path: Path) -> None:
    view = AudioView(sample_rate_hz=16000, duration_s=1.0)
    (tmp_path / "text.wav").write_bytes(b"hello")
    with pytest.raises(UndecodableError, match="not a readable sound"):
        view.load(Item(id="a", file=tmp_path / "text.wav"))
    with pytest.raises(UndecodableError, match="missing"):
        view.load(Item(id="a", file=tmp_path / "nothing.wav"))
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    with pytest.raises(UndecodableError, match="no samples"):
        view.load(Item(id="a", file=tmp_path / "silent.wav"))


def noise(path: Path, rate_hz: int, duration_s: float, channels: int = 1) -> Item:
    """Never silent and below full scale, so that every zero and every clipped sample is a view's doing."""
    samples = np.random.default_rng(0).uniform(0.1, 0.4, (round(rate_hz * duration_s), channels))
    soundfile.write(path, samples, rate_hz, subtype="FLOAT" if path.suffix == ".wav" else None)
    return Item(id="a", file=path)


def digest(views: list[np.ndarray], parameters: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in (*views, parameters))).hexdigest()


def replayed(
    item: Item, shift_s: float = 0, gain_db: float = 0, mask_start_s: float = 0, mask_s: float = 0
) -> np.ndarray:
    (view,) = VIEW.replay(item, np.array([[shift_s, gain_db, mask_start_s, mask_s]], np.float32))
    return view


@pytest.mark.parametrize("duration_s", [0.01, 0.3, 0.501, 2.0])
@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_first_view_is_the_evaluation_view_and_the_others_are_as_long(
    tmp_path: Path, rate_hz: int, duration_s: float
) -> None:
    item = noise(tmp_path / "a.wav", rate_hz, duration_s)
    views, parameters = VIEW.load_views(item, AudioAugmentation(), seed=0, num_views=5)
    np.testing.assert_array_equal(views[0], VIEW.load(item))
    assert not parameters[0].any()
    assert {(len(view), view.dtype) for view in views} == {(len(views[0]), np.dtype(np.float32))}
    assert len(views) == 6
    assert (parameters.shape, parameters.dtype) == ((6, len(AudioAugmentation.PARAMETERS)), np.float32)


def test_same_seed_item_and_view_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    item = noise(tmp_path / "a.wav", 44100, 1.0)
    code = f"""
import hashlib, pathlib
from contract.views import AudioAugmentation, AudioView, Item
item = Item(id="a", file=pathlib.Path({str(item.file)!r}))
views, parameters = AudioView(sample_rate_hz=16000, duration_s=0.5).load_views(item, AudioAugmentation(), 3, 2)
print(hashlib.sha256(b"".join(array.tobytes() for array in (*views, parameters))).hexdigest())
"""
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert theirs.strip() == digest(*VIEW.load_views(item, AudioAugmentation(), 3, 2))


def test_views_differ_among_themselves_between_seeds_and_between_items(tmp_path: Path) -> None:
    file = noise(tmp_path / "a.wav", 16000, 1.0).file
    views = [
        view.tobytes()
        for name, seed in (("a", 0), ("a", 1), ("b", 0))
        for view in VIEW.load_views(Item(id=name, file=file), AudioAugmentation(), seed, 3)[0][1:]
    ]
    assert len(set(views)) == 9


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("rate_hz", [16000, 44100])
@pytest.mark.parametrize("duration_s", [0.2, 0.52, 2.0])
def test_replay_equals_the_views_sample_for_sample(
    tmp_path: Path, name: str, rate_hz: int, duration_s: float
) -> None:
    item = noise(tmp_path / name, rate_hz, duration_s, channels=2)
    views, parameters = VIEW.load_views(item, AudioAugmentation(), seed=0, num_views=12)
    np.testing.assert_array_equal(VIEW.replay(item, parameters), views)
    # A view on its own is decoded less far than the one with the largest shift needs it.
    for view, row in zip(views, parameters, strict=True):
        np.testing.assert_array_equal(VIEW.replay(item, row[None]), [view])
    assert VIEW.replay(item, parameters[:0]) == []


def test_models_of_different_sample_rate_hear_the_same_span(tmp_path: Path) -> None:
    item = noise(tmp_path / "a.wav", 44100, 0.4)
    ours, theirs = (
        AudioView(sample_rate_hz=rate_hz, duration_s=0.5).load_views(item, AudioAugmentation(), 0, 3)[1]
        for rate_hz in (16000, 22050)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_shift_to_later_begins_with_zeros(tmp_path: Path) -> None:
    item = noise(tmp_path / "a.wav", 16000, 2.0)
    view = replayed(item, shift_s=0.1)
    assert not view[:1600].any()
    np.testing.assert_array_equal(view[1600:], VIEW.load(item)[:-1600])


def test_shift_to_earlier_brings_in_what_follows(tmp_path: Path) -> None:
    item = noise(tmp_path / "a.wav", 16000, 2.0)
    longer = AudioView(sample_rate_hz=16000, duration_s=0.6).load(item)
    np.testing.assert_array_equal(replayed(item, shift_s=-0.1), longer[1600:])


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 48000])
def test_shift_to_earlier_reaches_the_last_sample_at_every_rate(tmp_path: Path, rate_hz: int) -> None:
    item = noise(tmp_path / "a.wav", rate_hz, 2.0)
    for shift_s in np.linspace(-0.2, 0, 41):
        view = replayed(item, shift_s=shift_s)
        assert len(view) == VIEW.num_samples
        assert view[-1] != 0


def test_shift_of_what_ends_before_is_filled_with_zeros(tmp_path: Path) -> None:
    item = noise(tmp_path / "a.wav", 16000, 0.3)
    view = replayed(item, shift_s=-0.1)
    np.testing.assert_array_equal(view[:-1600], VIEW.load(item)[1600:])
    assert not view[-1600:].any()


@pytest.mark.parametrize("shift_s", [-3.0, -0.4, 0.4, 3.0])
def test_shift_beyond_the_sound_is_silence_as_long(tmp_path: Path, shift_s: float) -> None:
    view = replayed(noise(tmp_path / "a.wav", 16000, 0.3), shift_s=shift_s)
    assert len(view) == 4800
    assert not view.any()


@pytest.mark.parametrize("gain_db", [-6.0, 6.0])
def test_gain_is_the_factor_in_decibels(tmp_path: Path, gain_db: float) -> None:
    item = noise(tmp_path / "a.wav", 16000, 1.0)
    ratio = replayed(item, gain_db=gain_db) / VIEW.load(item)
    np.testing.assert_allclose(20 * np.log10(ratio), gain_db, atol=1e-4)


def test_what_is_too_loud_is_clipped(tmp_path: Path) -> None:
    view = replayed(noise(tmp_path / "a.wav", 16000, 1.0), gain_db=40)
    assert set(view) == {np.float32(1)}


def test_mask_is_a_span_of_zeros(tmp_path: Path) -> None:
    item = noise(tmp_path / "a.wav", 16000, 1.0)
    view, expected = replayed(item, mask_start_s=0.2, mask_s=0.05), VIEW.load(item)
    expected[3200:4000] = 0
    np.testing.assert_array_equal(view, expected)


@given(
    seed=st.integers(0, 2**32),
    duration_s=st.floats(0.001, 60),
    max_shift_s=st.floats(0, 5),
    gain_db=st.floats(0, 60),
    mask_s=st.floats(0, 5),
)
def test_parameters_stay_in_range_and_leave_half_of_a_short_sound(
    seed: int, duration_s: float, max_shift_s: float, gain_db: float, mask_s: float
) -> None:
    augmentation = AudioAugmentation(max_shift_s=max_shift_s, gain_db=gain_db, mask_s=mask_s)
    drawn = augmentation.draw(np.random.default_rng(seed), duration_s)
    assert (drawn.shape, drawn.dtype) == ((4,), np.float32)
    shift_s, gain, mask_start_s, masked_s = drawn.tolist()
    longer = 1 + 1e-6
    assert abs(shift_s) <= min(max_shift_s, duration_s / 4) * longer
    assert abs(gain) <= gain_db * longer
    assert 0 <= masked_s <= min(mask_s, duration_s / 4) * longer
    assert 0 <= mask_start_s <= mask_start_s + masked_s <= duration_s * longer


def test_parameters_are_uniform() -> None:
    generator = np.random.default_rng(0)
    shift_s, gain_db, _, mask_s = np.stack([AudioAugmentation().draw(generator, 2.0) for _ in range(4000)]).T
    for values, low, high in ((shift_s, -0.1, 0.1), (gain_db, -6, 6), (mask_s, 0, 0.1)):
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)


def test_augmentation_is_read_from_yaml() -> None:
    tree = {"max_shift_s": 0, "mask_s": 0.5}
    expected = AudioAugmentation(max_shift_s=0.0, mask_s=0.5)
    assert config.parse(tree, AudioAugmentation, source="a.yaml") == expected


@pytest.mark.parametrize("name", ["max_shift_s", "gain_db", "mask_s"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_setting_that_no_view_can_have_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^audio augmentation: {name} .* is not .*$"):
        AudioAugmentation(**{name: value})


def test_what_is_no_sound_has_no_views(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_bytes(b"hello")
    item = Item(id="a", file=tmp_path / "text.wav")
    with pytest.raises(UndecodableError, match="not a readable sound"):
        VIEW.load_views(item, AudioAugmentation(), 0, 2)
    with pytest.raises(UndecodableError, match="not a readable sound"):
        VIEW.replay(item, np.zeros((1, 4), np.float32))


NOISE = np.random.default_rng(0).uniform(-0.4, 0.4, 22050).astype(np.float32)
FORMATS = [
    ("a.wav", "PCM_U8"),
    ("a.wav", "PCM_16"),
    ("a.wav", "PCM_24"),
    ("a.wav", "PCM_32"),
    ("a.wav", "FLOAT"),
    ("a.wav", "DOUBLE"),
    ("a.flac", "PCM_16"),
    ("a.flac", "PCM_24"),
    ("a.aiff", "PCM_16"),
    ("a.ogg", "VORBIS"),
    ("a.mp3", "MPEG_LAYER_III"),
]


def wav(rate_hz: int, channels: int, samples: bytes, bits: int = 16, size_bytes: int | None = None) -> bytes:
    """Of integers, or of floats where `bits` is 32; `size_bytes` is what the header says."""
    frame = channels * bits // 8
    about = struct.pack(
        "<HHIIHH", 3 if bits == 32 else 1, channels, rate_hz, (rate_hz * frame) % 2**32, frame, bits
    )
    size = len(samples) if size_bytes is None else size_bytes
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + about + b"data" + struct.pack("<I", size) + samples
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, size + 36)) + chunks


def refused(item: Item, view: AudioView = VIEW) -> str:
    with pytest.raises(UndecodableError) as caught:
        view.load(item)
    assert "\n" not in str(caught.value)
    assert str(item.file.parent) not in str(caught.value)
    assert "0x" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_every_format_gives_soundfiles_samples_from_a_file_and_from_a_container(
    tmp_path: Path, name: str, subtype: str
) -> None:
    soundfile.write(tmp_path / name, NOISE, 16000, subtype=subtype)
    expected, _ = soundfile.read(tmp_path / name, dtype="float32", frames=8000)
    content = (tmp_path / name).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(512) + content)
    np.testing.assert_array_equal(VIEW.load(Item(id="a", file=tmp_path / name)), expected)
    part = f"bytes:512+{len(content)}"
    np.testing.assert_array_equal(VIEW.load(Item(id="a", file=tmp_path / "a.tar", part=part)), expected)


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_stretch_of_a_sound_is_that_of_the_whole(tmp_path: Path, name: str, subtype: str) -> None:
    soundfile.write(tmp_path / name, NOISE, 16000, subtype=subtype)
    whole, _ = soundfile.read(tmp_path / name, dtype="float32")
    tolerance = 2e-7 if name == "a.mp3" else 0  # its last bit depends on where one has sought to
    for start_ms, length_ms in ((0, 100), (250, 100), (250, -1), (1000, 9999), (1377, -1)):
        item = Item(id="a", file=tmp_path / name, start_ms=start_ms, length_ms=length_ms)
        stop = None if length_ms < 0 else (start_ms + length_ms) * 16
        np.testing.assert_allclose(VIEW.load(item), whole[start_ms * 16 : stop][:8000], rtol=0, atol=tolerance)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_no_view_hears_what_lies_outside_of_its_stretch(tmp_path: Path, rate_hz: int) -> None:
    inside = np.random.default_rng(0).uniform(-0.4, 0.4, round(0.7 * rate_hz))
    outside = np.full(rate_hz, np.nan)
    soundfile.write(tmp_path / "a.wav", np.concatenate([outside, inside, outside]), rate_hz, subtype="DOUBLE")
    soundfile.write(tmp_path / "alone.wav", inside, rate_hz, subtype="DOUBLE")
    # Anything of the outside would make the whole view no number.
    cut = Item(id="a", file=tmp_path / "a.wav", start_ms=1000, length_ms=700)
    alone = Item(id="a", file=tmp_path / "alone.wav")
    augmentation = AudioAugmentation(max_shift_s=5.0)
    for view in (VIEW, AudioView(sample_rate_hz=16000, duration_s=3.0)):
        ours, theirs = (view.load_views(item, augmentation, seed=0, num_views=20) for item in (cut, alone))
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_stretch_beyond_the_end_or_of_nothing_says_so(tmp_path: Path) -> None:
    file = noise(tmp_path / "a.wav", 16000, 2.0).file
    for start_ms in (2000, 2_000_000_000):
        reason = refused(Item(id="a", file=file, start_ms=start_ms))
        assert reason == f"it begins at {start_ms / 1000} s, and the sound ends after 2.000 s"
    assert refused(Item(id="a", file=file, start_ms=100, length_ms=0)) == "the sound has no samples"


def test_only_what_a_view_needs_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((16000 * 60, 2)), 16000)
    tracemalloc.start()
    VIEW.load(Item(id="a", file=tmp_path / "a.wav", start_ms=30_000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8000 * 2 * 4 * 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav(2**31 - 1, 1, bytes(400)), "its header gives 1 channels at 2,147,483,647 Hz"),
        (wav(1, 1, bytes(400)), "its header gives 1 channels at 1 Hz"),
        (wav(16000, 1024, bytes(1 << 14)), "its header gives 1,024 channels at 16,000 Hz"),
        (wav(0, 1, bytes(400)), "not a readable sound"),
        (wav(16000, 0, bytes(400)), "not a readable sound"),
    ],
)
def test_header_that_no_sound_has_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    assert refused(Item(id="a", file=tmp_path / "a.wav")).startswith(reason)


@pytest.mark.parametrize("size_bytes", [0x7FFFFFF0, 0xFFFFFFFF])
def test_length_that_is_a_lie_costs_no_memory(tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "a.wav").write_bytes(wav(16000, 1, b"\0\1" * 1000, size_bytes=size_bytes))
    flac = tmp_path / "a.flac"
    soundfile.write(flac, NOISE[:1000], 16000)
    content = bytearray(flac.read_bytes())
    content[21] |= 0x0F  # the upper bits of the number of samples: 2**36 - 1 of them
    content[22:26] = b"\xff" * 4
    flac.write_bytes(content)
    tracemalloc.start()
    assert len(VIEW.load(Item(id="a", file=tmp_path / "a.wav"))) == 1000
    assert refused(Item(id="a", file=flac)).startswith("not a readable sound")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_no_numbers_are_quarantined(tmp_path: Path, value: float, channels: int) -> None:
    samples = np.zeros((1000, channels), np.float32)
    samples[500] = value
    (tmp_path / "a.wav").write_bytes(wav(16000, channels, samples.tobytes(), bits=32))
    reason = "the sound has samples that are not numbers, or far beyond full scale"
    assert refused(Item(id="a", file=tmp_path / "a.wav")) == reason


def test_floats_beyond_full_scale_stay_as_they_are(tmp_path: Path) -> None:
    samples = np.linspace(-3, 3, 8000, dtype=np.float32)
    (tmp_path / "a.wav").write_bytes(wav(16000, 1, samples.tobytes(), bits=32))
    np.testing.assert_array_equal(VIEW.load(Item(id="a", file=tmp_path / "a.wav")), samples)


def test_silence_is_a_sound(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    assert not VIEW.load(Item(id="a", file=tmp_path / "a.wav")).any()


@pytest.mark.parametrize("name", ["a.wav", "a.aiff"])
def test_sound_that_was_cut_off_is_a_shorter_one(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, NOISE[:8000], 16000)
    whole = VIEW.load(Item(id="a", file=tmp_path / name))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    heard = VIEW.load(Item(id="a", file=tmp_path / name))
    assert 3900 < len(heard) < 4100
    np.testing.assert_array_equal(heard, whole[: len(heard)])


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5])
def test_flac_that_was_cut_off_is_quarantined(tmp_path: Path, kept: float) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE[:8000], 16000)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: int(len(content) * kept)])
    assert refused(Item(id="a", file=tmp_path / "a.flac")).startswith("not a readable sound")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.m4a", b"\0\0\0\x20ftypM4A \0\0\0\0", "MPEG-4"),
        ("a.aac", b"\xff\xf1\x50\x80\x02\x1f\xfc", "AAC"),
        ("a.webm", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "Matroska"),
        ("a.wma", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
        ("a.amr", b"#!AMR\n", "AMR"),
    ],
)
def test_format_that_is_not_decoded_is_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(content + bytes(2000))
    for part in ("", f"bytes:0+{len(content) + 2000}"):
        reason = refused(Item(id="a", file=tmp_path / name, part=part))
        assert reason.startswith(f"not a readable sound: {kind}")
        assert f"convert it to FLAC (ffmpeg -i {name} a.flac)" in reason


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"RIFF", b"RIFF\x24\0\0\0WAVEfmt ", b"fLaC" + bytes(99), bytes(999)]
)
@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a"])
def test_broken_sound_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(Item(id="a", file=tmp_path / name)).startswith("not a readable sound")
    assert refused(Item(id="a", file=tmp_path / name, part=f"bytes:0+{len(content)}")).startswith(
        "not a readable sound"
    )


def test_folder_and_pixels_are_no_sound(tmp_path: Path) -> None:
    assert refused(Item(id="a", file=tmp_path)).startswith("not a readable sound")
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    reason = refused(Item(id="a", file=tmp_path / "a.npy", part="npz:array[1]"))
    assert reason == "npz:array[1] of a.npy holds pixels, and not a sound"
