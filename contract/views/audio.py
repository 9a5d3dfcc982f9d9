"""Sounds: decoded, mixed down to one channel, resampled, cut to a length, perhaps shifted, louder and masked.

What is decoded is what soundfile gives, the mean over the channels: samples of a float file beyond full scale stay,
and a file that was cut off is a shorter sound where its format lets that pass. No more is read than a view needs,
and nothing outside of the stretch that an item is. What libsndfile does not decode is quarantined, and so are
samples that are no numbers and headers that no sound has.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from contract import parts
from contract.errors import ConfigError
from contract.tables import TO_THE_END
from contract.undecodable import said
from contract.views.augmentation import drawn
from contract.views.item import Item, UndecodableError

if TYPE_CHECKING:
    import soundfile

# What a shift, or a mask, may take from a short sound: half of it is always heard.
LARGEST_PART = 0.25
LARGEST_GAIN_DB = 60

RATES_HZ = range(1_000, 1_000_001)
MAX_CHANNELS = 64
# 32-bit integers that were written as floats are still a sound.
LOUDEST = 2.0**31
NUM_MAGIC = 16
UNSUPPORTED = {
    re.compile(rb"....ftyp", re.DOTALL): "MPEG-4 (m4a, mp4, aac)",
    re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"): "AAC",
    re.compile(rb"\x1a\x45\xdf\xa3"): "Matroska (webm, mka)",
    re.compile(rb"\x30\x26\xb2\x75"): "Windows Media (wma)",
    re.compile(rb"#!AMR"): "AMR",
}


@dataclass(frozen=True, kw_only=True)
class AudioAugmentation:
    """A shift in time, then a gain, then one span of silence.

    The shift is uniform in plus or minus `max_shift_s`, the gain in plus or minus `gain_db`, the silence at most
    `mask_s` long; of a short sound, shift and silence each take a quarter at most.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = ("shift_s", "gain_db", "mask_start_s", "mask_s")

    max_shift_s: float = 0.1
    gain_db: float = 6.0
    mask_s: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is negative, infinite, or no longer a sound in float32."""
        for name in ("max_shift_s", "mask_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"audio augmentation: {name} {getattr(self, name)} is not a number from 0 up")
        if not 0 <= self.gain_db <= LARGEST_GAIN_DB:
            raise ConfigError(f"audio augmentation: gain_db {self.gain_db} is not within 0 and {LARGEST_GAIN_DB}")

    def draw(self, generator: np.random.Generator, duration_s: float) -> npt.NDArray[np.float32]:
        """Draw the `PARAMETERS` of one view of a sound that lasts `duration_s`, float32 [4]."""
        max_shift_s = min(self.max_shift_s, LARGEST_PART * duration_s)
        shift_s = generator.uniform(-max_shift_s, max_shift_s)
        gain_db = generator.uniform(-self.gain_db, self.gain_db)
        mask_s = generator.uniform(0, min(self.mask_s, LARGEST_PART * duration_s))
        mask_start_s = generator.uniform(0, duration_s - mask_s)
        return np.array([shift_s, gain_db, mask_start_s, mask_s], np.float32)


@dataclass(frozen=True, kw_only=True)
class AudioView:
    """The first `duration_s` seconds of a sound, mono, at `sample_rate_hz`."""

    sample_rate_hz: int
    duration_s: float

    @property
    def num_samples(self) -> int:
        """The most samples that a view has."""
        return round(self.sample_rate_hz * self.duration_s)

    def load(self, item: Item) -> npt.NDArray[np.float32]:
        """Return the view, float32 [at most num_samples], in [-1, 1] unless the file holds floats beyond."""
        return self._resampled(decode(item, self.duration_s))[: self.num_samples]

    def load_views(
        self, item: Item, augmentation: AudioAugmentation, seed: int, num_views: int
    ) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """Return what `load` does and `num_views` augmentations of it, and their parameters.

        All views are float32 and as long as the first; the parameters are float32 [1 + num_views, 4], the first
        row zeros.
        """
        sound = decode(item, self.needed_s(-augmentation.max_shift_s))
        parameters = drawn(augmentation, seed, item.id, num_views, min(self.duration_s, sound.duration_s))
        return [self.render(sound, row) for row in parameters], parameters

    def replay(self, item: Item, parameters: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Return the views, float32 [at most num_samples], that have these parameters, float32 [n, 4]."""
        sound = decode(item, self.needed_s(parameters[:, 0].min(initial=0.0)))
        return [self.render(sound, row) for row in parameters]

    def render(self, sound: Sound, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the view, float32 [at most num_samples], that has these parameters, float32 [4].

        `sound` has been decoded as far as `needed_s` says, or further.
        """
        heard = self._resampled(sound, row[0])
        length = min(len(heard), self.num_samples)
        if not row.any():
            return heard[:length]
        shift, mask_start, num_masked = (round(float(time_s) * self.sample_rate_hz) for time_s in row[[0, 2, 3]])
        late, early = min(max(0, shift), length), max(0, -shift)
        kept = heard[early : early + length - late]
        view = np.zeros(length, np.float32)
        view[late : late + len(kept)] = kept * np.float32(10 ** (float(row[1]) / 20))
        view[mask_start : mask_start + num_masked] = 0
        return view.clip(-1, 1)

    def needed_s(self, shift_s: float) -> float:
        """How much of a sound a view needs that is shifted by `shift_s`: one to an earlier time brings in more."""
        # A drawn shift is float32, and none may reach beyond this one.
        num_beyond = max(0, -round(float(np.float32(shift_s)) * self.sample_rate_hz))
        return self.duration_s + num_beyond / self.sample_rate_hz

    def _resampled(self, sound: Sound, shift_s: float = 0.0) -> npt.NDArray[np.float32]:
        """The sound at the view's rate, as far as a view that is shifted by `shift_s` needs it, float32 [n].

        Resampled from no more than that, whatever was decoded: a view's bytes do not depend on its neighbours.
        """
        import soxr

        samples = sound.samples[: _num_samples(self.needed_s(shift_s), sound.rate_hz)]
        if sound.rate_hz == self.sample_rate_hz:
            return samples
        resampled: npt.NDArray[np.float32] = soxr.resample(samples, sound.rate_hz, self.sample_rate_hz)
        return resampled.astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """What was decoded of an item: float32 [n], mono, at the file's own rate."""

    samples: npt.NDArray[np.float32]
    rate_hz: int

    @property
    def duration_s(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate_hz


def decode(item: Item, needed_s: float) -> Sound:
    """The first `needed_s` seconds of the item, or all of a shorter one; what lies outside of it is never read."""
    import soundfile

    source = parts.read(item.file, item.part) if item.part else item.file
    if isinstance(source, np.ndarray):
        raise UndecodableError(f"{item.part} of {item.file.name} holds pixels, and not a sound")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            samples = _read(file, item, needed_s)
            rate_hz = file.samplerate
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise _unreadable(item.file, source, error) from error
    if not len(samples):
        raise UndecodableError("the sound has no samples")
    # False for NaN as well.
    if not np.abs(samples).max() <= LOUDEST:
        raise UndecodableError("the sound has samples that are not numbers, or far beyond full scale")
    return Sound(samples=samples, rate_hz=rate_hz)


def _read(file: soundfile.SoundFile, item: Item, needed_s: float) -> npt.NDArray[np.float32]:
    """Samples float32 [n], mixed down."""
    # A header that is a lie asks for any amount of memory.
    if file.samplerate not in RATES_HZ or file.channels > MAX_CHANNELS:
        raise UndecodableError(
            f"its header gives {file.channels:,} channels at {file.samplerate:,} Hz; a sound has up to "
            f"{MAX_CHANNELS} at {RATES_HZ.start:,} to {RATES_HZ.stop - 1:,} Hz"
        )
    start, num_wanted = round(item.start_ms * file.samplerate / 1000), _num_samples(needed_s, file.samplerate)
    if item.length_ms != TO_THE_END:
        num_wanted = min(num_wanted, round(item.length_ms * file.samplerate / 1000))
    if 0 < file.frames <= start:
        raise UndecodableError(
            f"it begins at {item.start_ms / 1000} s, and the sound ends after {file.frames / file.samplerate:.3f} s"
        )
    file.seek(start)  # to 0 as well, as soundfile.read does: an MP3 decodes to other bits after that
    with np.errstate(all="ignore"):  # floats that are no numbers are found afterwards
        mixed: npt.NDArray[np.float32] = file.read(num_wanted, dtype="float32", always_2d=True).mean(axis=1)
    return mixed


def _num_samples(duration_s: float, rate_hz: int) -> int:
    return int(rate_hz * duration_s) + 1


def _unreadable(file: Path, source: Path | bytes, error: Exception) -> UndecodableError:
    import soundfile

    if isinstance(source, Path):
        if not source.exists():
            return UndecodableError("the file is missing")
        try:
            with source.open("rb") as opened:
                source = opened.read(NUM_MAGIC)
        except OSError:
            source = b""
    for magic, kind in UNSUPPORTED.items():
        if magic.match(source):
            return UndecodableError(
                f"not a readable sound: {kind}, which libsndfile does not decode; convert it to FLAC "
                f"(ffmpeg -i {file.name} {file.stem}.flac)"
            )
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else said(error, file)
    return UndecodableError(f"not a readable sound: {text}")
