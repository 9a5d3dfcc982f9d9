import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from contract.encodings import Pixels
from contract.errors import ConfigError, DataError, MissingExtraError
from contract.views import Item
from encoders import weights
from encoders.huggingface_image import HuggingFaceImage
from encoders.image_model import NAMES, Encodings
from encoders.image_processor import Preprocessing

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = SMALL | {"image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
CONVOLUTIONAL = STAGES | {"image_size": 32}
# Class -> its configuration, tokens before the patches, registers among them, grid of the patch embeddings.
FAMILIES: dict[str, tuple[dict[str, Any], int, int, list[int]]] = {
    "ViTForImageClassification": (VIT, 1, 0, [4, 4]),
    "ViTModel": (VIT, 1, 0, [4, 4]),
    "DeiTForImageClassification": (VIT, 2, 0, [4, 4]),
    "DeiTForImageClassificationWithTeacher": (VIT, 2, 0, [4, 4]),
    "BeitForImageClassification": (VIT, 1, 0, [4, 4]),
    "Dinov2Model": (VIT, 1, 0, [4, 4]),
    "Dinov2ForImageClassification": (VIT, 1, 0, [4, 4]),
    "Dinov2WithRegistersModel": (VIT, 5, 4, [4, 4]),
    "DINOv3ViTModel": (VIT | {"num_register_tokens": 3}, 4, 3, [4, 4]),
    "DINOv3ConvNextModel": (CONVOLUTIONAL, 1, 0, [1, 1]),
    "SwinForImageClassification": (SWIN, 0, 0, [4, 4]),
    "ConvNextForImageClassification": (CONVOLUTIONAL, 0, 0, [1, 1]),
    "ConvNextV2Model": (CONVOLUTIONAL, 0, 0, [1, 1]),
    "ResNetForImageClassification": (STAGES | {"embedding_size": 8}, 0, 0, [1, 1]),
    "ResNetModel": (STAGES | {"embedding_size": 8}, 0, 0, [1, 1]),
    "MobileNetV2ForImageClassification": ({"image_size": 32, "depth_multiplier": 0.35}, 0, 0, [1, 1]),
    "CLIPVisionModel": (VIT, 1, 0, [4, 4]),
    "SiglipVisionModel": (VIT, 0, 0, [4, 4]),
}


def saved(folder: Path, name: str) -> Path:
    """A real model of a small configuration with its processor, as `save_pretrained` lays them out."""
    torch.manual_seed(0)
    made = getattr(transformers, name)
    config = made.config_class(**FAMILIES[name][0])
    if "Classification" in name:
        config.num_labels = 7
    made(config).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("vit"), "ViTForImageClassification")


def views(num_views: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (num_views, 32, 32, 3), dtype=np.uint8))


def everything(folder: Path) -> HuggingFaceImage:
    """The encoder that takes every field that the model has."""
    config = HuggingFaceImage(model=str(folder))
    with pytest.raises(ConfigError) as told:
        replace(config, take=("none",)).fields()
    return replace(config, take=tuple(str(told.value).rpartition(": ")[2].split(", ")))


def direct(folder: Path, name: str, images: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """What the library itself gives by name, with its own processor."""
    model = getattr(transformers, name).from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    tower = model if name.endswith("Model") else model.base_model
    _, num_prefix, num_registers, _ = FAMILIES[name]
    with torch.inference_mode():
        outputs, last = model(pixels), tower(pixels).last_hidden_state
        found = {"patch_features": last.flatten(2).mT if last.ndim == 4 else last[:, num_prefix:]}
        if hasattr(outputs, "logits"):
            found["logits"] = outputs.logits
        else:
            found["features"] = outputs.pooler_output.flatten(1)
        if hasattr(tower.embeddings if hasattr(tower, "embeddings") else tower, "cls_token"):
            found["cls"] = last[:, 0]
        if num_registers:
            found["registers"] = last[:, num_prefix - num_registers : num_prefix]
        patches = getattr(getattr(tower, "embeddings", None), "patch_embeddings", None)
        is_plain = patches is not None and "patch_size" in FAMILIES[name][0] and "Swin" not in name
        embedded = patches(pixels) if is_plain else found["patch_features"]
        found["patch_embeddings"] = embedded.flatten(2).mT if embedded.ndim == 4 else embedded
        if name in ("CLIPVisionModel", "SiglipVisionModel"):
            found["patch_embeddings"] = model.embeddings.patch_embedding(pixels).flatten(2).mT
            found |= {"cls": last[:, 0]} if num_prefix else {}
    return found


@pytest.mark.parametrize("name", list(FAMILIES))
def test_fields_equal_direct_calls_of_transformers(tmp_path: Path, name: str) -> None:
    config = everything(saved(tmp_path, name))
    expected, outputs = direct(tmp_path, name, views(3)), config.build("cpu")(views(3))
    fields = {field.name: field for field in config.fields()}
    assert {name: (3, *field.shape) for name, field in fields.items()} == {n: v.shape for n, v in outputs.items()}
    assert expected.keys() - outputs.keys() == set()
    assert outputs.keys() - expected.keys() <= {"features"}
    for field, value in expected.items():
        np.testing.assert_allclose(outputs[field], value.numpy(), atol=2e-5, rtol=1e-4)
    about = fields["patch_embeddings"].about
    _, num_prefix, num_registers, grid = FAMILIES[name]
    assert (about["grid"], about["patch_size"]) == (grid, [32 // side for side in grid])
    assert (about["num_prefix_tokens"], about["num_register_tokens"]) == (num_prefix, num_registers)
    if "logits" in fields:
        assert fields["logits"].about == {"temperature": 1.0, "num_labels": 7}


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "Dinov2ForImageClassification", "ResNetForImageClassification"]
)
def test_features_are_what_the_classifier_is_given(tmp_path: Path, name: str) -> None:
    config = HuggingFaceImage(model=str(saved(tmp_path, name)))
    outputs = config.build("cpu")(views(2))
    model = getattr(transformers, name).from_pretrained(tmp_path)
    linear = next(module for module in model.classifier.modules() if isinstance(module, torch.nn.Linear))
    with torch.inference_mode():
        logits = linear(torch.from_numpy(outputs["features"]))
    np.testing.assert_allclose(logits.numpy(), outputs["logits"], atol=1e-5)
    about = {field.name: field.about for field in config.fields()}
    assert about["features"] == {"from": "classifier's input"}


@pytest.mark.parametrize("take", [None, ("logits",), ("patch_features", "cls"), NAMES[:3]])
def test_one_forward_pass_gives_every_field(vit: Path, take: tuple[str, ...] | None) -> None:
    model = HuggingFaceImage(model=str(vit), take=take).build("cpu")
    calls: list[int] = []
    model._outputs._model.vit.register_forward_hook(lambda *_: calls.append(1))
    assert set(model(views(4))) == set(take or ("patch_embeddings", "features", "logits"))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "SwinForImageClassification", "ResNetForImageClassification"]
)
def test_values_do_not_depend_on_the_batch(tmp_path: Path, name: str) -> None:
    model = everything(saved(tmp_path, name)).build("cpu")
    together, alone = model(views(5)), [model([view]) for view in views(5)]
    for field, value in together.items():
        np.testing.assert_allclose(value, np.concatenate([one[field] for one in alone]), atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(vit: Path, precision: Any) -> None:
    config = HuggingFaceImage(model=str(vit))
    exact, half = (replace(config, precision=one).build("cpu")(views(4)) for one in ("float32", precision))
    for name in ("features", "logits"):
        cosine = (exact[name] * half[name]).sum(1) / np.linalg.norm(exact[name], axis=1)
        assert (cosine / np.linalg.norm(half[name], axis=1)).min() > 0.999


def test_view_is_the_processors(vit: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 41, 3), np.uint8)).save(tmp_path / "a.png")
    config = HuggingFaceImage(model=str(vit), take=("logits",))
    logits = config.build("cpu")([config.view().load(Item(id="a", file=tmp_path / "a.png"))])["logits"]
    processor = AutoImageProcessor.from_pretrained(vit, backend="pil")
    model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    with Image.open(tmp_path / "a.png") as image, torch.inference_mode():
        expected = model(**processor(images=image, return_tensors="pt")).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_stored_pixels_decode_to_the_patch_embeddings(vit: Path) -> None:
    config = HuggingFaceImage(model=str(vit), encodings=Encodings(patch_embeddings=Pixels()))
    built, field = config.build("cpu"), config.fields()[0]
    outputs = built(views(2))
    stored = field.encode(outputs["patch_embeddings.pixels"], built.constants())
    decoded = field.decode(stored, built.constants(), np)
    np.testing.assert_allclose(decoded, outputs["patch_embeddings"], atol=2e-5, rtol=1e-5)


def test_pixels_are_refused_where_tokens_are_no_linear_map_of_patches(tmp_path: Path) -> None:
    folder = saved(tmp_path, "SwinForImageClassification")
    with pytest.raises(ConfigError, match="are not a linear map of square patches"):
        HuggingFaceImage(model=str(folder), encodings=Encodings(patch_embeddings=Pixels())).fields()


def test_tokens_names_another_module(vit: Path) -> None:
    config = HuggingFaceImage(model=str(vit), tokens="vit.embeddings.dropout", take=("patch_embeddings",))
    assert config.fields()[0].shape == (17, 24)
    with pytest.raises(ConfigError, match=r"tokens: model .* has no module 'nowhere'"):
        replace(config, tokens="nowhere").fields()


def test_larger_input_than_the_model_was_trained_with_interpolates_its_positions(vit: Path) -> None:
    config = HuggingFaceImage(model=str(vit), preprocessing=Preprocessing(input_size=(3, 48, 64)))
    fields = {field.name: field for field in config.fields()}
    assert fields["patch_embeddings"].about["grid"] == [6, 8]
    assert config.notes() == ("preprocessing.input_size is (3, 48, 64), the model's own is (3, 32, 32)",)


@pytest.mark.parametrize("is_safe", [True, False])
def test_backbone_without_a_pooler_has_no_features(tmp_path: Path, is_safe: bool) -> None:
    saved(tmp_path, "ViTModel")
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("pooler")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if not is_safe:
        torch.save(kept, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    config = everything(tmp_path)
    assert "features" not in config.take
    assert set(config.build("cpu")(views(1))) == {"patch_embeddings", "patch_features", "cls"}


@pytest.mark.parametrize("missing", ["classifier.weight", "vit.encoder.layer.1.intermediate.dense.weight"])
def test_weights_that_are_missing_are_named(vit: Path, tmp_path: Path, missing: str) -> None:
    for file in vit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if name.endswith(missing.rpartition("encoder.layer.")[2]))
    del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 of the model's arrays"):
        HuggingFaceImage(model=str(tmp_path)).build("cpu")


def test_sharded_weights_are_loaded_and_hashed(vit: Path, tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(vit)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "preprocessor_config.json").write_bytes((vit / "preprocessor_config.json").read_bytes())
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    config = HuggingFaceImage(model=str(tmp_path))
    expected = HuggingFaceImage(model=str(vit)).build("cpu")(views(2))["logits"]
    np.testing.assert_array_equal(config.build("cpu")(views(2))["logits"], expected)
    before = weights.folder_fingerprint(tmp_path)
    state = {name: value + 1 for name, value in load_file(shards[-1]).items()}
    save_file(state, shards[-1], metadata={"format": "pt"})
    assert weights.folder_fingerprint(tmp_path) != before
    shards[0].unlink()
    with pytest.raises(DataError, match=rf"{shards[0].name} is missing"):
        config.recipe()


def test_truncated_weights_are_one_error_before_anything_is_loaded(vit: Path, tmp_path: Path) -> None:
    for file in vit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    for content in (whole[: len(whole) // 2], b"no weights at all" * 20):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(DataError, match=r"model\.safetensors: not a whole file of weights") as told:
            HuggingFaceImage(model=str(tmp_path)).recipe()
        assert "\n" not in str(told.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights there"):
        HuggingFaceImage(model=str(tmp_path)).recipe()


def test_masked_autoencoder_which_masks_at_random_is_refused(tmp_path: Path) -> None:
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="ViTMAE masks patches at random"):
        HuggingFaceImage(model=str(tmp_path)).fields()


def test_model_that_is_nowhere_says_how_to_put_it_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        MissingExtraError, match=rf"google/vit.*a local folder as `model`, copy the hub's cache to {tmp_path}"
    ):
        HuggingFaceImage(model="google/vit-base-patch16-224").fields()
