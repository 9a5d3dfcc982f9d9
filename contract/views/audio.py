"""Sounds: decoded, mixed down to one channel, resampled, cut to a length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.views.item import Item, UndecodableError


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
        import soundfile
        import soxr

        if not item.file.exists():
            raise UndecodableError("the file is missing")
        try:
            with soundfile.SoundFile(item.file) as file:
                wanted = int(file.samplerate * self.duration_s) + 1
                samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
                rate = file.samplerate
        except (soundfile.SoundFileError, OSError) as error:
            reason = str(error).replace(str(item.file), item.file.name)
            raise UndecodableError(f"not a readable sound: {reason}") from error
        if not len(samples):
            raise UndecodableError("the sound has no samples")
        resampled = soxr.resample(samples, rate, self.sample_rate_hz) if rate != self.sample_rate_hz else samples
        cut: npt.NDArray[np.float32] = resampled[: self.num_samples].astype(np.float32)
        return cut
