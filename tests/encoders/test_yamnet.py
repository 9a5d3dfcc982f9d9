import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from contract.errors import ConfigError, DataError
from contract.views import Item
from encoders import Yamnet

RATE_HZ = 16000
REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
WEIGHTS = REAL / "weights" / "yamnet_audioset521_mobilenetv1_100.fp16.safetensors"
SMALL: dict[str, Any] = {
    "model": "mobilenetv3_small_050",
    "model_args": {"pad_type": "same"},
    "num_classes": 9,
    "duration_s": 2.0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("yamnet") / "model.safetensors"
    torch.manual_seed(0)
    model = timm.create_model(SMALL["model"], in_chans=1, num_classes=9, pad_type="same")
    save_file(model.state_dict(), path)
    return str(path)


def sounds() -> list[npt.NDArray[np.float32]]:
    """Of 2 s, of 0.5 s (less than a window), of 1 s, and one sample."""
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, length).astype(np.float32) for length in (32000, 8000, 16000, 1)]


def slow_windows(samples: npt.NDArray[Any], hop: int = 48) -> npt.NDArray[np.float64]:
    """Float64 [windows, 96, 64] as TensorFlow makes them: frames of 400 from the start, triangles over the mel."""
    num_windows = 1 + max(0, -(-(len(samples) - 15600) // (hop * 160)))
    padded = np.zeros(15600 + (num_windows - 1) * hop * 160)
    padded[: len(samples)] = samples
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [padded[start : start + 400] for start in range(0, len(padded) - 399, 160)]
    magnitude = np.abs(np.fft.rfft(np.stack(frames) * window, 512))

    def mel(hertz: Any) -> Any:
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(125), mel(7500), 66)
    bins = mel(np.arange(257) * RATE_HZ / 512)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    log_mel = np.log(magnitude @ np.maximum(0, np.minimum(rise, fall)) + 0.001)
    return np.stack([log_mel[start : start + 96] for start in range(0, num_windows * hop, hop)])


def test_fields_equal_direct_calls_of_timm_on_a_slow_spectrogram(checkpoint: str) -> None:
    direct = timm.create_model(SMALL["model"], in_chans=1, num_classes=9, pad_type="same").eval()
    direct.load_state_dict(load_file(checkpoint))
    config = Yamnet(checkpoint=checkpoint, **SMALL)
    outputs = config.build("cpu")(sounds())
    assert {field.name: (4, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}
    assert outputs["length"].tolist() == [4, 1, 2, 1]
    for row, sound in enumerate(sounds()):
        windows = torch.from_numpy(slow_windows(sound)).float().unsqueeze(1)
        with torch.inference_mode():
            embeddings = direct.forward_head(direct.forward_features(windows), pre_logits=True)
            score = direct(windows).double().sigmoid().mean(dim=0)
        length = outputs["length"][row]
        assert length == len(windows)
        np.testing.assert_allclose(outputs["patch_embeddings"][row, :length], embeddings, atol=2e-3)
        assert not outputs["patch_embeddings"][row, length:].any()
        np.testing.assert_allclose(outputs["features"][row], embeddings.mean(dim=0), atol=2e-3)
        np.testing.assert_allclose(outputs["logits"][row], (score / (1 - score)).log(), atol=2e-3)


def test_a_sound_does_not_depend_on_its_batch(checkpoint: str) -> None:
    model = Yamnet(checkpoint=checkpoint, **SMALL).build("cpu")
    together = model(sounds())
    for row, sound in enumerate(sounds()):
        for name, values in model([sound]).items():
            np.testing.assert_allclose(values[0], together[name][row], atol=1e-5)


def test_scores_near_0_and_1_have_finite_logits(checkpoint: str) -> None:
    model = Yamnet(checkpoint=checkpoint, **SMALL).build("cpu")
    model._model.classifier.bias += torch.tensor([1000.0, -1000.0, *[0.0] * 7])
    logits = model(sounds())["logits"]
    assert logits.max() == pytest.approx(-logits.min()) == pytest.approx(np.log(1e6), abs=1e-3)


def test_fields_say_what_they_are_and_take_chooses(checkpoint: str) -> None:
    config = Yamnet(checkpoint="/nowhere", hop_s=0.96, **SMALL)
    patches, _, logits, _ = config.fields()
    assert patches.about == {"window_s": 0.96, "hop_s": 0.96}
    assert patches.shape[0] == 3
    assert logits.about["multi_label"]
    assert config.notes() == ("hop_s is 0.96, the model's own is 0.48",)
    taken = Yamnet(checkpoint=checkpoint, take=("features",), **SMALL)
    assert taken.notes() == ()
    assert list(taken.build("cpu")(sounds())) == ["features"] == [field.name for field in taken.fields()]


def test_every_window_passes_once_and_silence_after_the_sound_does_not(checkpoint: str) -> None:
    model = Yamnet(checkpoint=checkpoint, **SMALL).build("cpu")
    passed: list[int] = []
    model._model.conv_stem.register_forward_hook(lambda _module, inputs, _output: passed.append(len(inputs[0])))
    model(sounds())
    assert passed == [4 + 1 + 2 + 1]


@pytest.mark.parametrize(("precision", "cosine"), [("bfloat16", 0.995), ("float16", 0.9999)])
def test_half_precision_is_near_float32(checkpoint: str, precision: Any, cosine: float) -> None:
    config = Yamnet(checkpoint=checkpoint, **SMALL)
    exact, half = (replace(config, precision=each).build("cpu")(sounds()) for each in ("float32", precision))
    for name in ("patch_embeddings", "features", "logits"):
        a, b = (made[name].reshape(4, -1) for made in (exact, half))
        near = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        print(f"yamnet {precision} {name}: cosine against float32 at least {near.min():.6f}")
        assert near.min() > cosine


def test_mistakes_are_one_line(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hop_s: 0.485 is not a multiple of the frames' 0.01 s"):
        Yamnet(checkpoint=checkpoint, hop_s=0.485)
    with pytest.raises(ConfigError, match="timm model nothing with model_args"):
        Yamnet(checkpoint=checkpoint, model="nothing").fields()
    weights = load_file(checkpoint)
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"can't be loaded into the model.*classifier.weight"):
        Yamnet(**SMALL | {"checkpoint": str(tmp_path / "model.safetensors")}).build("cpu")


@pytest.mark.skipif(not (WEIGHTS.exists() and (REAL / "esc10").exists()), reason="no real weights and sounds here")
def test_neighbours_by_the_published_weights_are_of_the_same_class() -> None:
    with (REAL / "esc10" / "esc10.csv").open() as file:
        rows = list(csv.DictReader(file))
    config = Yamnet(checkpoint=str(WEIGHTS), duration_s=5.0)
    model, view = config.build("cpu"), config.view()
    audio = REAL / "esc10" / "audio"
    views = [view.load(Item(id=row["filename"], file=audio / row["filename"])) for row in rows]
    batches = [model(views[start : start + 20]) for start in range(0, len(views), 20)]
    features, logits = (np.concatenate([made[name] for made in batches]) for name in ("features", "logits"))
    labels, folds = (np.array([row[key] for row in rows]) for key in ("category", "fold"))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = np.where(folds[:, None] == folds, -1, features @ features.T)
    nearest = labels[np.argsort(-similarity, axis=1)[:, :5]]
    num_right = sum(
        max(set(five), key=list(five).count) == label for five, label in zip(nearest, labels, strict=True)
    )
    print(f"yamnet: {num_right} of {len(labels)} clips of ESC-10 by their 5 nearest neighbours in the other fold")
    assert num_right >= 0.85 * len(labels)
    # "Dog", "Baby cry, infant cry", "Helicopter" of AudioSet's classes.
    for category, number in (("Dog bark", 69), ("Baby cry", 20), ("Helicopter", 333)):
        names = logits[labels == category].mean(axis=0)
        assert (names > names[number]).sum() < 8
