from pathlib import Path

import numpy as np
import pytest
import soundfile

from contract.views import AudioView, Item, TextView, UndecodableError


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
