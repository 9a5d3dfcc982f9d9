"""One input: decoded from its first byte to its last, as the encoders' views decode it, and hashed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from contract import parts
from contract.paths import inside
from contract.undecodable import UndecodableError, said
from contract.views import Item, audio, image_file

NUM_HASHED = 16
NO_DURATION = -1
NUM_FRAMES = 1 << 18  # of a sound, at a time


class Seen(NamedTuple):
    """What one input holds: the first 16 bytes of its SHA-256, and how long a sound is; or why it can't be read."""

    hash: bytes
    duration_ms: int
    reason: str


def look(root: Path, modality: str, file: str, part: str) -> Seen:
    """Read an image or a sound, whole."""
    try:
        item = Item(id=file, file=inside(root, file), part=part)
        duration_ms = NO_DURATION
        if modality == "image":
            image_file.decode(item)
        else:
            audio.decode(item, needed_s=0)  # refuses headers that no sound has
            duration_ms = _duration_ms(item)
        return Seen(_hash(item), duration_ms, "")
    except (UndecodableError, OSError) as error:
        return Seen(bytes(NUM_HASHED), NO_DURATION, str(error))


def _duration_ms(item: Item) -> int:
    """How long a sound is, once all of it has been decoded; a view reads no further than it needs."""
    import soundfile

    source = parts.read(item.file, item.part) if item.part else item.file
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as sound:
            num_frames = sum(len(block) for block in sound.blocks(NUM_FRAMES, dtype="float32"))
            return int(-(-num_frames * 1000 // sound.samplerate))
    except soundfile.SoundFileError as error:
        raise UndecodableError(f"not a readable sound: {said(error, item.file)}") from error


def _hash(item: Item) -> bytes:
    if not item.part:
        with item.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:NUM_HASHED]
    content = parts.read(item.file, item.part)
    if not isinstance(content, bytes):
        content = repr(content.shape).encode() + content.tobytes()
    return hashlib.sha256(content).digest()[:NUM_HASHED]
