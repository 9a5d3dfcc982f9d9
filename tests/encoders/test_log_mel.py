import numpy as np
import pytest

from encoders import LogMel

RATE_HZ = 16000


def slow_log_mel(samples: np.ndarray, num_bands: int, lowest_hz: float, highest_hz: float) -> np.ndarray:
    """Float64, frame by frame, from the definition: |rfft| of Hann windows, HTK triangles, log(x + 0.001)."""
    size, hop, window_size = 512, 160, 400
    window = np.zeros(size)
    window[(size - window_size) // 2 :][:window_size] = 0.5 - 0.5 * np.cos(
        2 * np.pi * np.arange(window_size) / window_size
    )
    padded = np.pad(samples.astype(np.float64), size // 2, mode="reflect")
    frames = [
        np.abs(np.fft.rfft(window * padded[start : start + size])) for start in range(0, len(samples) + 1, hop)
    ]
    mel = np.linspace(*(2595 * np.log10(1 + hz / 700) for hz in (lowest_hz, highest_hz)), num_bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(size // 2 + 1) * RATE_HZ / size
    rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.log(np.stack(frames) @ np.maximum(0, np.minimum(rise, fall)) + 0.001)


def test_patches_equal_a_slow_spectrogram() -> None:
    samples = np.random.default_rng(0).normal(scale=0.1, size=RATE_HZ).astype(np.float32)
    config = LogMel(duration_s=1.0)
    outputs = config.build("cpu")([samples])
    slow = slow_log_mel(samples, config.num_bands, config.lowest_hz, config.highest_hz)[: 25 * 4]
    np.testing.assert_allclose(outputs["patch_embeddings"][0], slow.reshape(25, 4 * 64), atol=2e-3)


def test_short_sounds_are_padded_and_their_length_is_told() -> None:
    config = LogMel(duration_s=1.0)
    outputs = config.build("cpu")(
        [np.ones(RATE_HZ, np.float32), np.ones(RATE_HZ // 2, np.float32), np.ones(3, np.float32)]
    )
    assert outputs["length"].tolist() == [25, 12, 1]
    assert not outputs["patch_embeddings"][1, 12:].any()
    assert outputs["patch_embeddings"][1, :12].any()


def test_fields_say_what_comes_out() -> None:
    config = LogMel(duration_s=2.5, patch_frames=16, num_bands=32)
    outputs = config.build("cpu")([np.zeros(100, np.float32)])
    assert {field.name: (1, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}


def test_tone_lights_the_band_of_its_pitch() -> None:
    config = LogMel(duration_s=1.0)
    loudest = []
    for hertz in (300, 1000, 3000):
        tone = np.sin(2 * np.pi * hertz * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
        patch = config.build("cpu")([tone])["patch_embeddings"][0, 10].reshape(4, 64)
        loudest.append(int(patch.mean(axis=0).argmax()))
    assert loudest == sorted(set(loudest))
    assert config.recipe()["highest_hz"] == pytest.approx(7500)
