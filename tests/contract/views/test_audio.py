import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from contract import config
from contract.errors import ConfigError
from contract.views import AudioAugmentation, AudioView, Item, TextView, UndecodableError

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


def test_caption_is_stripped_and_an_empty_one_refused(tmp_path: Path) -> None:
    assert TextView().load(Item(id="a", file=tmp_path, text=" a dog \n")) == "a dog"
    with pytest.raises(UndecodableError, match="empty"):
        TextView().load(Item(id="a", file=tmp_path, text="  "))


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
