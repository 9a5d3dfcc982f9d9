"""What `trainer export` writes, read: from pictures, texts and sounds to embeddings, without torch or Precept.

    FOLDER/bundle.json        what there is, and how each modality's input is prepared
           image.onnx         the frozen encoder and the student in one model; text.onnx, audio.onnx
           embed.py           this file, which imports nothing of Precept

    from embed import Embedder

    embedder = Embedder("FOLDER")
    embedder.images(["a.jpg"]) @ embedder.texts(["a dog on a beach"]).T    # cosines

It needs numpy and onnxruntime; pillow for images, soundfile for sounds (and soxr for those of another sample rate
than the model's), tokenizers for texts that are tokenized. `eval search` encodes its queries with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = 1
DESCRIPTION = "bundle.json"
INPUTS = {"image": "pictures", "text": "texts", "audio": "sounds"}

Embeddings = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
# A file, or what it holds.
Source = str | Path | bytes

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
BITS_PER_SAMPLE = 258  # a tag of TIFF


class BundleError(Exception):
    """A bundle that can't be used, or an input that can't be read; the message is one line."""


class Embedder:
    """The models of a bundle, each loaded when it is first asked; `int8` takes the quantized ones.

    `providers` are onnxruntime's, such as CUDAExecutionProvider.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        int8: bool = False,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.folder = Path(__file__).resolve().parent if folder is None else Path(folder)
        self._int8, self._providers = int8, list(providers)
        self._sessions: dict[str, Any] = {}

    @cached_property
    def description(self) -> dict[str, Any]:
        """The content of bundle.json."""
        path = self.folder / DESCRIPTION
        try:
            tree: dict[str, Any] = json.loads(path.read_text())
            version = tree["format"]
        except FileNotFoundError as error:
            raise BundleError(f"{self.folder}: no bundle there (it has no {DESCRIPTION})") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not the description of a bundle: {error}") from error
        if version != FORMAT:
            raise BundleError(f"{path} has format {version!r}, and this program reads format {FORMAT}")
        return tree

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it embeds, of image, text and audio."""
        return tuple(self.description["modalities"])

    @property
    def width(self) -> int:
        """D, of every embedding."""
        return int(self.description["width"])

    def images(self, images: Sequence[Source], batch_size: int = 32) -> Embeddings:
        """Pictures, as files or their bytes -> float32 [n, D], unit length."""
        return self.embed("image", images, batch_size)

    def texts(self, texts: Sequence[str], batch_size: int = 32) -> Embeddings:
        """Texts -> float32 [n, D], unit length."""
        return self.embed("text", texts, batch_size)

    def sounds(self, sounds: Sequence[Source], batch_size: int = 32) -> Embeddings:
        """Sounds, as files or their bytes -> float32 [n, D], unit length."""
        return self.embed("audio", sounds, batch_size)

    def embed(self, modality: str, items: Sequence[Any], batch_size: int = 32) -> Embeddings:
        """Items of a modality -> float32 [n, D], unit length."""
        if isinstance(items, str | bytes | Path):  # a text is a sequence too, of its letters
            raise BundleError(f"give a list of {INPUTS.get(modality, modality)}, not one: [{_named(items)!r}]")
        found = np.empty((len(items), self.width), np.float32)
        for start in range(0, len(items), batch_size):
            for rows, inputs in self._batches(modality, items[start : start + batch_size]):
                found[start + np.array(rows)] = self.run(modality, inputs)
        return found

    def run(self, modality: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Embeddings:
        """The model's embeddings, float32 [n, D]."""
        found: Embeddings = self._session(modality).run(["embedding"], dict(inputs))[0]
        return found

    def about(self, modality: str) -> dict[str, Any]:
        """What bundle.json says of a modality."""
        known = self.description["modalities"]
        if modality not in known:
            raise BundleError(f"{self.folder} embeds no {INPUTS.get(modality, modality)}, only {', '.join(known)}")
        found: dict[str, Any] = known[modality]
        return found

    def _session(self, modality: str) -> Any:
        if modality not in self._sessions:
            key = "int8" if self._int8 else "model"
            about = self.about(modality)
            if key not in about:
                raise BundleError(
                    f"{self.folder} has no int8 model of {modality}; `trainer export --int8` writes it"
                )
            self._sessions[modality] = self._load(self.folder / about[key])
        return self._sessions[modality]

    def _load(self, path: Path) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise BundleError("onnxruntime is not installed: `pip install onnxruntime`") from error
        try:
            return onnxruntime.InferenceSession(path, providers=self._providers)
        except Exception as error:  # the library's own, of many kinds
            raise BundleError(f"{path}: onnxruntime can't load it: {' '.join(str(error).split())[:200]}") from error

    def _batches(self, modality: str, items: Sequence[Any]) -> Iterator[tuple[list[int], Arrays]]:
        """The items' numbers and what the model takes for them, as many at once as may go together."""
        about = self.about(modality)["preprocessing"]
        rows = list(range(len(items)))
        if about["kind"] == "pixels":
            yield rows, {"pixels": np.stack([view(picture(source), about) for source in items])}
        elif about["kind"] == "views":
            views = [[view(shown, one) for one in about["views"]] for shown in map(picture, items)]
            yield rows, {f"pixels_{n}": np.stack(own) for n, own in enumerate(zip(*views, strict=True))}
        elif about["kind"] == "samples":
            yield from _sounds([samples(source, about) for source in items], about)
        elif about["kind"] == "ngrams":
            yield rows, _ngrams([stripped(text) for text in items], about)
        else:
            encoded = self._tokenizer.encode_batch([stripped(text) for text in items])
            yield rows, _tokens(encoded, about)

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BundleError("tokenizers is not installed: `pip install tokenizers`") from error
        about = self.about("text")["preprocessing"]
        tokenizer = Tokenizer.from_file(str(self.folder / about["tokenizer"]))
        tokenizer.no_padding()
        tokenizer.enable_truncation(about["max_length"])
        return tokenizer


def stripped(text: str) -> str:
    """A text without surrounding white space."""
    if not isinstance(text, str):
        raise BundleError(f"{text!r}: not a text")
    if not text.strip():
        raise BundleError("the text is empty")
    return text.strip()


def picture(source: Source) -> Any:
    """The whole picture, RGB, upright: a PIL image."""
    from PIL import Image, ImageOps

    _require_file(source)
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as file:
            file.load()
            with suppress(Exception):  # broken EXIF is common, and says nothing of the pixels
                ImageOps.exif_transpose(file, in_place=True)
            if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
                num_bits = getattr(file, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
                return Image.fromarray((np.asarray(file) >> (num_bits - 8)).astype(np.uint8)).convert("RGB")
            if file.mode in ("I", "F"):
                raise BundleError(f"{_named(source)}: pixels of mode {file.mode} have no agreed range")
            return file.convert("RGB")
    except BundleError:
        raise
    except Exception as error:  # what a broken file raises in PIL has no common parent
        raise BundleError(f"{_named(source)}: not a readable picture: {_reason(error)}") from error


def view(image: Any, about: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A PIL image, resized and cropped -> uint8 [height, width, 3]."""
    from PIL import Image

    height, width = about["height"], about["width"]
    resized = image.resize(
        _resized(image.width, image.height, about), Image.Resampling[about["interpolation"].upper()]
    )
    middle = round if about["rounding"] == "nearest" else math.floor
    left, top = middle((resized.width - width) / 2.0), middle((resized.height - height) / 2.0)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def samples(source: Source, about: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The start of a sound, mono, at the model's rate -> float32 [n]."""
    try:
        import soundfile
    except ImportError as error:
        raise BundleError("soundfile is not installed: `pip install soundfile`") from error
    _require_file(source)
    rate_hz = about["sample_rate_hz"]
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            file.seek(0)  # an MP3 decodes to other bits after that
            heard = file.read(int(file.samplerate * about["duration_s"]) + 1, dtype="float32", always_2d=True)
            sound, own_hz = heard.mean(axis=1), file.samplerate
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise BundleError(f"{_named(source)}: not a readable sound: {_reason(error)}") from error
    if not len(sound):
        raise BundleError(f"{_named(source)}: the sound has no samples")
    if own_hz != rate_hz:
        try:
            import soxr
        except ImportError as error:
            raise BundleError(
                f"{_named(source)} is of {own_hz} Hz and the model hears {rate_hz} Hz: `pip install soxr`"
            ) from error
        sound = soxr.resample(sound, own_hz, rate_hz)
    return np.asarray(sound[: round(rate_hz * about["duration_s"])], np.float32)


def _resized(width: int, height: int, about: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height before the crop."""
    wide, high = (math.floor(about[side] / about["crop_pct"]) for side in ("width", "height"))
    if about["crop_mode"] == "squash":
        return wide, high
    if wide == high:
        return (wide, int(wide * height / width)) if width <= height else (int(wide * width / height), wide)
    ratio = min(height / high, width / wide)
    return round(width / ratio), round(height / ratio)


def _sounds(sounds: list[npt.NDArray[np.float32]], about: Mapping[str, Any]) -> Iterator[tuple[list[int], Arrays]]:
    """One batch padded with silence; of models that would hear the padding, one for each length there is."""
    if about["num_samples"] is not None:
        padded = np.zeros((len(sounds), about["num_samples"]), np.float32)
        for row, sound in enumerate(sounds):
            padded[row, : len(sound)] = sound
        lengths = np.array([len(sound) for sound in sounds], np.int64)
        yield list(range(len(sounds))), {"sounds": padded, "length": lengths}
        return
    rows: dict[int, list[int]] = {}
    for row, sound in enumerate(sounds):
        rows.setdefault(len(sound), []).append(row)
    for own in rows.values():
        yield own, {"sounds": np.stack([_heard(sounds[row], about) for row in own])}


def _heard(sound: npt.NDArray[np.float32], about: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    if about["normalises"]:
        sound = (sound - np.mean(sound)) / np.sqrt(np.var(sound) + 1e-7)
    return np.pad(sound, (0, max(0, about["fewest_samples"] - len(sound)))).astype(np.float32)


def _tokens(encoded: Sequence[Any], about: Mapping[str, Any]) -> Arrays:
    """Ids, mask and types int64 [n, T] of what the tokenizer gives; those that the model takes."""
    num_tokens = about["max_length"] if about["pads_to_max_length"] else max(2, *(len(one.ids) for one in encoded))
    parts = {
        "input_ids": ("ids", about["padding_id"]),
        "attention_mask": ("attention_mask", 0),
        "token_type_ids": ("type_ids", about["padding_type_id"]),
    }
    arrays = {}
    for name in about["inputs"]:
        part, padding = parts[name]
        arrays[name] = np.full((len(encoded), num_tokens), padding, np.int64)
        for row, one in enumerate(encoded):
            arrays[name][row, : len(one.ids)] = getattr(one, part)
    return arrays


def _ngrams(texts: list[str], about: Mapping[str, Any]) -> Arrays:
    """Words as sums of the signs that a hash gives for their n-grams: float32 [n, T, D], and int64 [n] words."""
    vectors = np.zeros((len(texts), about["max_length"], about["width"]), np.float32)
    lengths = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        words = re.findall(about["word"], text.lower())[: about["max_length"]]
        lengths[row] = len(words)
        for place, word in enumerate(words):
            vectors[row, place] = _word_vector(word, about["width"], *about["ngrams"])
    return {"vectors": vectors, "length": lengths}


@lru_cache(maxsize=100_000)
def _word_vector(word: str, width: int, smallest: int, largest: int) -> npt.NDArray[np.float32]:
    marked = f"<{word}>"
    grams = {marked[i : i + n] for n in range(smallest, largest + 1) for i in range(len(marked) - n + 1)}
    shared = np.sum([_signs(gram, width) for gram in sorted(grams)], axis=0) / np.sqrt(len(grams))
    vector: npt.NDArray[np.float32] = (_signs(marked, width) + shared).astype(np.float32)
    return vector


def _signs(text: str, width: int) -> npt.NDArray[np.float32]:
    digest = hashlib.blake2b(text.encode(), digest_size=width // 8).digest()
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) * 2 - 1


def _require_file(source: Source) -> None:
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise BundleError(f"{source}: no such file")


def _named(source: Source) -> str:
    return f"{len(source):,} bytes" if isinstance(source, bytes) else str(source)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
