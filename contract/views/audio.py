"""Sounds: decoded, mixed down to one channel, resampled, cut to a length, perhaps shifted, louder and masked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError
from contract.views.augmentation import generator
from contract.views.item import Item, UndecodableError

# What a shift, or a mask, may take from a short sound: half of it is always heard.
LARGEST_PART = 0.25
LARGEST_GAIN_DB = 60


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
        """Return the view, float32 [at most num_samples], in [-1, 1]."""
        return self._resampled(self._decode(item))[: self.num_samples]

    def load_views(
        self, item: Item, augmentation: AudioAugmentation, seed: int, num_views: int
    ) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """Return what `load` does and `num_views` augmentations of it, and their parameters.

        All views are float32 and as long as the first; the parameters are float32 [1 + num_views, 4], the first
        row zeros.
        """
        # Rounded to float32 as a drawn shift is, so that none reaches beyond it.
        sound = self._decode(item, self._num_beyond(-np.float32(augmentation.max_shift_s)))
        duration_s = min(self.duration_s, len(sound.samples) / sound.rate_hz)
        parameters = np.zeros((1 + num_views, len(augmentation.PARAMETERS)), np.float32)
        for view in range(1, 1 + num_views):
            parameters[view] = augmentation.draw(generator(seed, item.id, view), duration_s)
        return [self._render(sound, row) for row in parameters], parameters

    def replay(self, item: Item, parameters: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Return the views, float32 [at most num_samples], that have these parameters, float32 [n, 4]."""
        sound = self._decode(item, self._num_beyond(parameters[:, 0].min(initial=0.0)))
        return [self._render(sound, row) for row in parameters]

    def _render(self, sound: _Sound, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        heard = self._resampled(sound, self._num_beyond(row[0]))
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

    def _decode(self, item: Item, num_beyond: int = 0) -> _Sound:
        """The sound's own samples, as far as a view needs them that ends `num_beyond` of its samples later."""
        import soundfile

        if not item.file.exists():
            raise UndecodableError("the file is missing")
        try:
            with soundfile.SoundFile(item.file) as file:
                wanted = self._wanted(file.samplerate, num_beyond)
                samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
                rate_hz = file.samplerate
        except (soundfile.SoundFileError, OSError) as error:
            reason = str(error).replace(str(item.file), item.file.name)
            raise UndecodableError(f"not a readable sound: {reason}") from error
        if not len(samples):
            raise UndecodableError("the sound has no samples")
        return _Sound(samples=samples, rate_hz=rate_hz)

    def _resampled(self, sound: _Sound, num_beyond: int = 0) -> npt.NDArray[np.float32]:
        """The sound at the view's rate, up to `num_beyond` samples after the view's end, float32 [n].

        Resampled from no more than that, whatever was decoded: a view's bytes do not depend on its neighbours.
        """
        import soxr

        samples = sound.samples[: self._wanted(sound.rate_hz, num_beyond)]
        if sound.rate_hz == self.sample_rate_hz:
            return samples
        resampled: npt.NDArray[np.float32] = soxr.resample(samples, sound.rate_hz, self.sample_rate_hz)
        return resampled.astype(np.float32)

    def _wanted(self, rate_hz: int, num_beyond: int) -> int:
        """How many samples at the file's rate a view needs that ends `num_beyond` of its own later."""
        return int(rate_hz * (self.duration_s + num_beyond / self.sample_rate_hz)) + 1

    def _num_beyond(self, shift_s: np.float32) -> int:
        """How many samples from after the view's end a shift to an earlier time brings in."""
        return max(0, -round(float(shift_s) * self.sample_rate_hz))


@dataclass(frozen=True, kw_only=True)
class _Sound:
    """What was decoded: float32 [n] at the file's own rate."""

    samples: npt.NDArray[np.float32]
    rate_hz: int
