import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

from contract.encodings import Lookup, Pixels
from contract.errors import ConfigError, DataError
from contract.views import Item
from encoders.clip import ClipImage, ClipText, ImageEncodings, TextEncodings
from encoders.image_processor import Preprocessing

CAPTIONS = ["a dog runs", "two dogs run on the green grass", "dog"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "dogs", "run", "runs"]
WORDS += ["two", "on", "green", "grass"]
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
TEXT = SMALL | {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SQUARE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CLIP": (
        {"vision_config": VISION, "text_config": TEXT | {"max_position_embeddings": 77}, "projection_dim": 20},
        {"image_processor_type": "CLIPImageProcessor", **SQUARE},
    ),
    "Siglip": (
        {"vision_config": VISION, "text_config": TEXT | {"max_position_embeddings": 64, "projection_size": 24}},
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
    ),
    "ChineseCLIP": (
        {"vision_config": VISION, "text_config": TEXT | {"max_position_embeddings": 52}, "projection_dim": 20},
        {"image_processor_type": "ChineseCLIPImageProcessor", **SQUARE},
    ),
}


def saved(folder: Path, family: str) -> Path:
    """A real dual encoder of a small configuration, as `save_pretrained` and the hub lay it out."""
    settings, processor = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    # SigLIP's published tokenizers give no mask, so that the model attends to the padding.
    inputs = ["input_ids"] if family == "Siglip" else ["input_ids", "attention_mask"]
    vocab = {word: number for number, word in enumerate(WORDS)}
    BertTokenizerFast(vocab=vocab, model_input_names=inputs).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("clip"), "CLIP")


def pictures(folder: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(3)]
    for path, size in zip(paths, [(50, 41, 3), (40, 67, 3), (32, 32, 3)], strict=True):
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(path)
    return paths


def test_image_fields_equal_direct_calls_of_transformers(folder: Path, tmp_path: Path) -> None:
    config = ClipImage(model=str(folder), take=("patch_embeddings", "patch_features", "features", "embedding"))
    paths = pictures(tmp_path)
    outputs = config.build("cpu")([config.view().load(Item(id=path.name, file=path)) for path in paths])

    model = AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(images=[Image.open(path) for path in paths], return_tensors="pt")
    with torch.inference_mode():
        vision = model.vision_model(**inputs)
        expected = {
            "patch_embeddings": model.vision_model.embeddings.patch_embedding(inputs["pixel_values"]).flatten(2).mT,
            "patch_features": vision.last_hidden_state[:, -16:],
            "features": vision.pooler_output,
            "embedding": model.get_image_features(**inputs).pooler_output,
        }
    assert {field.name: (3, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value.numpy(), atol=1e-5, rtol=1e-5)


def test_captions_are_embedded_as_the_library_documents(folder: Path) -> None:
    config = ClipText(model=str(folder))
    outputs = config.build("cpu")(CAPTIONS)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    is_siglip = model.config.model_type == "siglip"
    padding: dict[str, Any] = {"padding": "max_length", "max_length": 64} if is_siglip else {"padding": True}
    inputs = tokenizer(CAPTIONS, truncation=True, return_tensors="pt", **padding)
    with torch.inference_mode():
        embedding = model.get_text_features(**inputs).pooler_output
        rows = model.text_model.get_input_embeddings()(inputs["input_ids"])
    np.testing.assert_allclose(outputs["embedding"], embedding.numpy(), atol=1e-5, rtol=1e-5)
    for row, caption in enumerate(CAPTIONS):
        length = len(tokenizer(caption)["input_ids"])
        assert outputs["length"][row] == length
        np.testing.assert_array_equal(outputs["token_embeddings"][row, :length], rows[row, :length].numpy())
        assert not outputs["token_embeddings"][row, length:].any()
    assert {field.name: (3, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}


def test_scores_from_stored_embeddings_are_the_models_own(folder: Path, tmp_path: Path) -> None:
    image, text = ClipImage(model=str(folder)), ClipText(model=str(folder))
    paths = pictures(tmp_path)
    images = image.build("cpu")([image.view().load(Item(id=path.name, file=path)) for path in paths])["embedding"]
    captions = text.build("cpu")(CAPTIONS)["embedding"]
    about = {field.name: field.about for field in image.fields()}["embedding"]
    assert about == {field.name: field.about for field in text.fields()}["embedding"]
    assert about["normalised"] is False
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (images, captions)]
    scores = about["logit_scale"] * units[0] @ units[1].T + about.get("logit_bias", 0.0)

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    is_siglip = model.config.model_type == "siglip"
    padding: dict[str, Any] = {"padding": "max_length", "max_length": 64} if is_siglip else {"padding": True}
    inputs = processor(images=[Image.open(path) for path in paths], return_tensors="pt")
    inputs |= tokenizer(CAPTIONS, return_tensors="pt", **padding)
    with torch.inference_mode():
        expected = model(**inputs).logits_per_image
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)


def test_models_with_other_weights_have_other_spaces(clip: Path, tmp_path: Path) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state["logit_scale"] = torch.tensor(math.log(50.0))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    one, other = (ClipText(model=str(folder)).fields()[-1].about for folder in (clip, tmp_path))
    assert one["space"] != other["space"]
    assert other["logit_scale"] == pytest.approx(50.0, rel=1e-6)


def test_values_do_not_depend_on_the_batch(folder: Path) -> None:
    views = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    for model, items in ((ClipImage(model=str(folder)), views), (ClipText(model=str(folder)), CAPTIONS)):
        built = model.build("cpu")
        together, alone = built(items), [built([item]) for item in items]
        for name, value in together.items():
            np.testing.assert_allclose(value, np.concatenate([one[name] for one in alone]), atol=1e-5)


def test_a_tower_runs_once_whatever_is_taken(clip: Path) -> None:
    for take in (None, ("embedding",), ("patch_embeddings", "patch_features", "cls", "features", "embedding")):
        model = ClipImage(model=str(clip), take=take).build("cpu")
        calls: list[int] = []
        model._outputs._model.vision_model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        outputs = model([np.zeros((32, 32, 3), np.uint8)] * 3)
        assert (len(calls), list(outputs)) == (1, list(take or ("patch_embeddings", "embedding")))


def test_stored_pixels_decode_to_the_patch_embeddings(clip: Path) -> None:
    config = ClipImage(model=str(clip), encodings=ImageEncodings(patch_embeddings=Pixels()))
    built, field = config.build("cpu"), config.fields()[0]
    outputs = built(list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)))
    stored = field.encode(outputs["patch_embeddings.pixels"], built.constants())
    np.testing.assert_allclose(
        field.decode(stored, built.constants(), np), outputs["patch_embeddings"], atol=2e-5, rtol=1e-5
    )


def test_text_is_written_of_tokens_without_special_ones(clip: Path) -> None:
    config = ClipText(model=str(clip), max_length=12)
    (tokens,) = config.tokens(CAPTIONS[:1])
    assert config.tokens([config.text(tokens)]) == [tokens]
    assert "<|" not in config.text(tokens)


@pytest.mark.parametrize("side", ["left", "right"])
def test_looked_up_tokens_decode_to_the_embeddings_whatever_the_side_of_padding(clip: Path, side: str) -> None:
    config = ClipText(model=str(clip), max_length=12, encodings=TextEncodings(token_embeddings=Lookup()))
    built, field = config.build("cpu"), config.fields()[0]
    built._tokenizer.padding_side = side
    outputs = built(CAPTIONS)
    stored = field.encode(outputs["token_embeddings.ids"], built.constants())
    np.testing.assert_array_equal(field.decode(stored, built.constants(), np), outputs["token_embeddings"])
    assert outputs["token_embeddings"][:, 0].any(axis=1).all()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(clip: Path, precision: Any) -> None:
    views = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    config = ClipImage(model=str(clip))
    exact, half = (
        replace(config, precision=name).build("cpu")(views)["embedding"] for name in ("float32", precision)
    )
    cosine = (exact * half).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.999


def test_siglip2_of_variable_resolution_equals_its_processor_on_a_square_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 16}
    text = TEXT | {"max_position_embeddings": 64, "projection_size": 24}
    config = transformers.Siglip2Config(vision_config=vision, text_config=text)
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    processor = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 25}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ConfigError, match=r"max_num_patches.*preprocessing\.input_size"):
        ClipImage(model=str(tmp_path)).view()

    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(
        input_size=(3, 40, 40), mean=half, std=half, interpolation="bilinear", crop_mode="squash"
    )
    ours = ClipImage(model=str(tmp_path), preprocessing=preprocessing, take=("patch_features", "embedding"))
    path = pictures(tmp_path)[2]
    outputs = ours.build("cpu")([ours.view().load(Item(id="a", file=path))])
    library = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    inputs = library(images=Image.open(path), return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(tmp_path).eval().get_image_features(**inputs)
    np.testing.assert_allclose(outputs["embedding"], expected.pooler_output.numpy(), atol=1e-5)
    np.testing.assert_allclose(outputs["patch_features"], expected.last_hidden_state.numpy(), atol=1e-5)
    assert ours.fields()[0].about["grid"] == [5, 5]
    assert "the model's own is unknown" in ours.notes()[0]


def test_align_falls_out(tmp_path: Path) -> None:
    vision = {"image_size": 64, "hidden_dim": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2}
    text = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = transformers.AlignConfig(vision_config=vision, text_config=text, projection_dim=32)
    transformers.AlignModel(config).save_pretrained(tmp_path)
    processor = {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    fields = {field.name: field for field in ClipImage(model=str(tmp_path)).fields()}
    assert fields["embedding"].about["logit_scale"] == pytest.approx(1 / config.temperature_init_value)
    assert fields["patch_embeddings"].about["grid"] == [2, 2]


def test_weights_that_are_missing_are_named(clip: Path, tmp_path: Path) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"visual_projection\.weight"):
        ClipImage(model=str(tmp_path)).build("cpu")


def test_more_tokens_than_positions_are_refused(clip: Path) -> None:
    with pytest.raises(ConfigError, match="max_length: 78 tokens, and the model has positions for 77"):
        ClipText(model=str(clip), max_length=78).fields()
