import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import ASTConfig, ASTFeatureExtractor, BertConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from contract.errors import ConfigError, DataError
from encoders import HuggingFaceAudio

RATE_HZ = 16000
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 5,
}
CONVOLUTIONS: dict[str, Any] = SMALL | {
    "conv_dim": (16, 16, 12),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 10,
}
FAMILIES = {
    "Wav2Vec2": CONVOLUTIONS,
    "Wav2Vec2 layer norm": CONVOLUTIONS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "Hubert": CONVOLUTIONS,
    "WavLM": CONVOLUTIONS,
    "UniSpeech": CONVOLUTIONS,
    "UniSpeechSat": CONVOLUTIONS,
    "SEW": CONVOLUTIONS,
    "Data2VecAudio": CONVOLUTIONS | {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7},
}
SPECTROGRAM: dict[str, Any] = SMALL | {
    "patch_size": 8,
    "frequency_stride": 5,
    "time_stride": 6,
    "num_mel_bins": 24,
    "max_length": 40,
}
ALL = ("patch_embeddings", "patch_features", "features", "logits", "length")
HEADLESS = ("patch_embeddings", "patch_features", "features", "length")


def sounds() -> list[npt.NDArray[np.float32]]:
    """Four sounds of 0.2 s and less, two of them equally long, one too short for a frame."""
    generator = np.random.default_rng(0)
    return [generator.normal(0.1, 0.2, length).astype(np.float32) for length in (3200, 1700, 3200, 40)]


def saved(folder: Path, family: str, head: str = "ForSequenceClassification") -> Any:
    """A model of the family, of a small configuration, saved with its feature extractor."""
    name = family.split()[0]
    torch.manual_seed(0)
    model = getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**FAMILIES[family]))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model.eval()


def saved_spectrogram(folder: Path, head: str = "ForAudioClassification") -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, f"AST{head}")(ASTConfig(**SPECTROGRAM))
    model.save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=24, max_length=40).save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("head", ["ForSequenceClassification", "Model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_waveform_models_equal_a_direct_call_on_each_sound_alone(tmp_path: Path, family: str, head: str) -> None:
    direct = saved(tmp_path, family, head)
    taken = ALL if head != "Model" else HEADLESS
    config = HuggingFaceAudio(model=str(tmp_path), duration_s=0.2, take=taken)
    model = config.build("cpu")
    outputs = model(sounds())
    assert {field.name: (4, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    for row, sound in enumerate(sounds()):
        heard = extractor(sound, sampling_rate=RATE_HZ, return_tensors="pt")["input_values"]
        # SEW squeezes two frames into one, so that a sound has to have two.
        heard = torch.nn.functional.pad(heard, (0, max(0, (140 if family == "SEW" else 60) - heard.shape[1])))
        with torch.inference_mode():
            frames = direct.base_model.feature_extractor(heard)[0].T
            states = direct.base_model(heard).last_hidden_state
            expected = {"patch_embeddings": frames, "patch_features": states[0], "features": states[0].mean(dim=0)}
            if head != "Model":
                expected["logits"] = direct(heard).logits[0]
                expected["features"] = direct.projector(states[0]).mean(dim=0)
        length = outputs["length"][row]
        assert length == len(frames)
        for name, value in expected.items():
            stored = outputs[name][row]
            np.testing.assert_allclose(stored[: len(value)], value, atol=1e-5)
            assert not stored[len(value) :].any()
            np.testing.assert_allclose(stored, model([sound])[name][0], atol=1e-5)


@pytest.mark.parametrize("family", ["Wav2Vec2", "Data2VecAudio"])
def test_padding_would_have_been_heard(tmp_path: Path, family: str) -> None:
    """Why sounds of different lengths do not share a pass: not even the library's own masks keep them apart."""
    direct = saved(tmp_path, family, "Model")
    padded = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)(
        sounds()[:2], sampling_rate=RATE_HZ, padding=True, return_attention_mask=True, return_tensors="pt"
    )
    with torch.inference_mode():
        states = direct(padded["input_values"], attention_mask=padded["attention_mask"]).last_hidden_state[1]
    config = HuggingFaceAudio(model=str(tmp_path), duration_s=0.2, take=HEADLESS)
    outputs = config.build("cpu")(sounds()[:2])
    alone = outputs["patch_features"][1, : outputs["length"][1]]
    assert np.abs(states[: len(alone)].numpy() - alone).max() > 1e-3


@pytest.mark.parametrize("head", ["ForAudioClassification", "Model"])
def test_spectrogram_models_equal_a_direct_call(tmp_path: Path, head: str) -> None:
    direct = saved_spectrogram(tmp_path, head)
    taken = tuple(name for name in ALL if name != "length" and (name != "logits" or head != "Model"))
    config = HuggingFaceAudio(model=str(tmp_path), duration_s=0.2, take=taken)
    model = config.build("cpu")
    outputs = model(sounds())
    assert {field.name: (4, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path)
    for row, sound in enumerate(sounds()):
        heard = np.pad(sound, (0, max(0, 400 - len(sound))))
        values = extractor(heard, sampling_rate=RATE_HZ, return_tensors="pt")["input_values"]
        with torch.inference_mode():
            made = direct.base_model(values)
            expected = {
                "patch_embeddings": direct.base_model.embeddings.patch_embeddings(values)[0],
                "patch_features": made.last_hidden_state[0, 2:],
                "features": made.pooler_output[0],
            }
            if head != "Model":
                expected["logits"] = direct(values).logits[0]
        for name, value in expected.items():
            np.testing.assert_allclose(outputs[name][row], value, atol=1e-5)
            np.testing.assert_allclose(outputs[name][row], model([sound])[name][0], atol=1e-5)


def test_patches_of_a_spectrogram_lie_in_the_grid_that_is_told(tmp_path: Path) -> None:
    direct = saved_spectrogram(tmp_path)
    config = HuggingFaceAudio(model=str(tmp_path), duration_s=0.2)
    assert [field.name for field in config.fields()] == ["patch_embeddings", "features", "logits"]
    assert config.fields()[0].about == {
        "axes": ["frequency", "time"],
        "grid": [4, 6],
        "patch_size": [8, 8],
        "stride": [5, 6],
        "num_prefix_tokens": 2,
        "num_cls_tokens": 1,
        "num_distillation_tokens": 1,
    }
    patches = config.build("cpu")(sounds()[:1])["patch_embeddings"][0].reshape(4, 6, 24)
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path)
    values = extractor(sounds()[0], sampling_rate=RATE_HZ, return_tensors="pt")["input_values"][0]
    projection = direct.base_model.embeddings.patch_embeddings.projection
    with torch.inference_mode():
        # Patch [2, 3] begins at band 2 x 5 and at frame 3 x 6.
        square = values[18:26, 10:18].T
        by_hand = (projection.weight[:, 0] * square).sum(dim=(1, 2)) + projection.bias
    np.testing.assert_allclose(patches[2, 3], by_hand, atol=1e-5)


def test_fields_load_no_weights(tmp_path: Path) -> None:
    saved(tmp_path, "Wav2Vec2")
    (tmp_path / "model.safetensors").unlink()
    config = HuggingFaceAudio(model=str(tmp_path), duration_s=0.2)
    shapes = {field.name: field.shape for field in config.fields()}
    assert shapes == {"patch_embeddings": (40, 12), "features": (10,), "logits": (5,), "length": ()}
    assert config.fields()[0].about == {"frame_s": 60 / RATE_HZ, "hop_s": 80 / RATE_HZ}
    assert config.view().sample_rate_hz == RATE_HZ
    with pytest.raises(DataError, match="no file named"):
        config.build("cpu")


def test_published_geometry_is_one_frame_each_20_ms(tmp_path: Path) -> None:
    Wav2Vec2Config().save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    patches = HuggingFaceAudio(model=str(tmp_path)).fields()[0]
    assert patches.shape == (499, 512)  # what the library's own arithmetic makes of 10 s
    assert patches.about == {"frame_s": 0.025, "hop_s": 0.02}


def test_logits_say_whether_they_are_one_distribution(tmp_path: Path) -> None:
    saved(tmp_path, "Wav2Vec2")
    config = HuggingFaceAudio(model=str(tmp_path), take=("logits",))
    assert config.fields()[0].about == {"temperature": 1.0}
    assert replace(config, multi_label=True).fields()[0].about == {"multi_label": True}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problem_type": "multi_label_classification"}))
    assert HuggingFaceAudio(model=str(tmp_path), take=("logits",)).fields()[0].about == {"multi_label": True}


def test_each_sound_passes_once_through_the_model(tmp_path: Path) -> None:
    for save, sizes in ((saved, [2, 1, 1]), (saved_spectrogram, [4])):
        folder = tmp_path / save.__name__
        save(folder, *(["Wav2Vec2"] if save is saved else []))  # type: ignore[operator]
        model = HuggingFaceAudio(model=str(folder), duration_s=0.2).build("cpu")
        passed: list[int] = []
        model._model.base_model.register_forward_pre_hook(lambda _m, inputs, p=passed: p.append(len(inputs[0])))
        model(sounds())
        assert passed == sizes


@pytest.mark.parametrize(("precision", "cosine"), [("bfloat16", 0.999), ("float16", 0.9999)])
def test_half_precision_is_near_float32(tmp_path: Path, precision: Any, cosine: float) -> None:
    for save in (saved, saved_spectrogram):
        folder = tmp_path / save.__name__
        save(folder, *(["Wav2Vec2"] if save is saved else []))  # type: ignore[operator]
        config = HuggingFaceAudio(model=str(folder), duration_s=0.2)
        exact, half = (replace(config, precision=each).build("cpu")(sounds()) for each in ("float32", precision))
        for name in exact.keys() - {"length"}:
            a, b = (made[name].reshape(4, -1) for made in (exact, half))
            near = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
            print(f"{save.__name__} {precision} {name}: cosine against float32 at least {near.min():.6f}")
            assert half[name].dtype == np.float32
            assert near.min() > cosine


def test_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "Wav2Vec2")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]  # of training only
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    HuggingFaceAudio(model=str(tmp_path)).build("cpu")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 of the model's arrays, such as 'classifier.weight'"):
        HuggingFaceAudio(model=str(tmp_path)).build("cpu")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="is a 'bert'; huggingface_audio knows data2vec-audio, hubert"):
        HuggingFaceAudio(model=str(tmp_path / "bert")).fields()
    Wav2Vec2Config().save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match=r"no feature extractor can be made of .*preprocessor_config.json"):
        HuggingFaceAudio(model=str(tmp_path / "bare")).fields()
    Wav2Vec2Config(add_adapter=True).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="add_adapter is true"):
        HuggingFaceAudio(model=str(tmp_path / "adapter")).fields()
    saved_spectrogram(tmp_path / "ast")
    ASTFeatureExtractor(num_mel_bins=24).save_pretrained(tmp_path / "ast")
    with pytest.raises(ConfigError, match=r"makes 1024 frames of 24 bands, and its config.json takes 40 of 24"):
        HuggingFaceAudio(model=str(tmp_path / "ast")).build("cpu")


def test_seconds_that_a_spectrogram_has_no_room_for_are_noted(tmp_path: Path) -> None:
    saved_spectrogram(tmp_path)
    config = HuggingFaceAudio(model=str(tmp_path), duration_s=0.4)
    assert config.notes() == () == replace(config, model=str(tmp_path), duration_s=0.41).notes()
    assert replace(config, duration_s=2.0).notes() == (
        "duration_s is 2, and the model hears the first 0.42 s of these",
    )
    assert config.recipe()["preprocessing"]["mean"] == ASTFeatureExtractor(num_mel_bins=24).mean
