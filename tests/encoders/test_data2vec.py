from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import (
    BeitImageProcessorPil,
    BertTokenizerFast,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    Wav2Vec2FeatureExtractor,
)

from contract.encodings import Lookup
from contract.errors import ConfigError, DataError
from encoders import Data2VecAudio, Data2VecImage, Data2VecText, ImageEncoder
from encoders.data2vec.targets import settle
from encoders.data2vec.text import Encodings
from encoders.image_processor import Preprocessing

DEPTH, WIDTH = 4, 24
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 40}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "dogs", "run", "runs", "on", "grass"]
CAPTIONS = ["a dog runs", "the dogs run on the grass", "dog"]
RATE_HZ = 16000

Arrays = dict[str, npt.NDArray[Any]]


def shaken(model: Any) -> Any:
    """The model with its biases, norms and layer scales drawn at random too, so that each of them matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in model.named_parameters():
            drawn = torch.randn(values.shape, generator=generator)
            is_scale = ("orm" in name and name.endswith("weight")) or "lambda" in name
            values.copy_(1 + 0.3 * drawn if is_scale else 0.3 * drawn if values.ndim == 1 else 2 * values)
    return model.eval()


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image")
    torch.manual_seed(0)
    config = Data2VecVisionConfig(**SMALL, image_size=32, patch_size=8, use_relative_position_bias=True)
    shaken(Data2VecVisionModel(config)).save_pretrained(path)
    size = {"height": 32, "width": 32}
    BeitImageProcessorPil(
        size=size, do_center_crop=False, image_mean=[0.4] * 3, image_std=[0.2] * 3
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    config = Data2VecTextConfig(**SMALL, vocab_size=len(WORDS), pad_token_id=0, max_position_embeddings=20)
    shaken(Data2VecTextModel(config)).save_pretrained(path)
    BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio")
    torch.manual_seed(0)
    config = Data2VecAudioConfig(
        **SMALL,
        conv_dim=(16, 16, 12),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 4, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=7,
        num_conv_pos_embedding_groups=4,
    )
    shaken(Data2VecAudioModel(config)).save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
    return path


def images(num_images: int) -> list[npt.NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8))


def sounds() -> list[npt.NDArray[np.float32]]:
    """Four lengths, two of them alike, one shorter than a frame."""
    generator = np.random.default_rng(0)
    lengths = (3200, 1700, 3200, 40)
    return [generator.normal(0.1, 0.2, length).astype(np.float32) for length in lengths]


def normed(values: torch.Tensor, dim: int) -> torch.Tensor:
    """(x - mean) / sqrt(var + 1e-5) along `dim`, by the formula."""
    mean = values.mean(dim, keepdim=True)
    variance = ((values - mean) ** 2).mean(dim, keepdim=True)
    return (values - mean) / (variance + 1e-5).sqrt()


def affine(values: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(values: torch.Tensor) -> torch.Tensor:
    return values * (1 + torch.erf(values / 2**0.5)) / 2


def in_float64(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    model = model.double().eval()
    return model, {name: values.detach() for name, values in model.named_parameters()}


def slow_topk_mean(outputs: list[torch.Tensor], k: int, normalise: str, layer_normed: bool) -> torch.Tensor:
    """Of one item: outputs float64 [T, D] of all blocks -> targets [T, D]."""
    dims = {"layer": 1, "instance": 0}
    top = [normed(output, dims[normalise]) if normalise in dims else output for output in outputs[-k:]]
    mean = torch.stack(top).sum(0) / k
    return normed(mean, 1) if layer_normed else mean


def slow_image(folder: Path, image: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Patch embeddings, FFN outputs of all blocks, last block's output, by hand from weights and attention."""
    model, w = in_float64(Data2VecVisionModel.from_pretrained(folder, attn_implementation="eager"))
    pixels = (torch.from_numpy(image).double().permute(2, 0, 1)[None] / 255 - 0.4) / 0.2
    patches = torch.stack(
        [
            (pixels[0, :, top : top + 8, left : left + 8] * w["embeddings.patch_embeddings.projection.weight"]).sum(
                (1, 2, 3)
            )
            for top in range(0, 32, 8)
            for left in range(0, 32, 8)
        ]
    )
    patches = patches + w["embeddings.patch_embeddings.projection.bias"]
    states = torch.cat([w["embeddings.cls_token"][0], patches])
    outputs = []
    for number, layer in enumerate(model.encoder.layer):
        at = f"encoder.layer.{number}"
        attended = layer.attention(layer.layernorm_before(states[None]), resolution=(32, 32))[0][0]
        states = states + w[f"{at}.lambda_1"] * attended
        inner = normed_layer(states, w, f"{at}.layernorm_after", model.config.layer_norm_eps)
        output = affine(gelu(affine(inner, w, f"{at}.intermediate.dense")), w, f"{at}.output.dense")
        outputs.append(output[1:])
        states = states + w[f"{at}.lambda_2"] * output
    return patches, outputs, states[1:]


def normed_layer(values: torch.Tensor, w: dict[str, torch.Tensor], name: str, eps: float) -> torch.Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scaled = centred / ((centred**2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def slow_text(folder: Path, caption: str) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    model, w = in_float64(Data2VecTextModel.from_pretrained(folder, attn_implementation="eager"))
    ids = [2, *(WORDS.index(word) for word in caption.split()), 3]
    rows = w["embeddings.word_embeddings.weight"][ids]
    # Positions are counted from behind the padding's.
    positions = w["embeddings.position_embeddings.weight"][1 : 1 + len(ids)]
    summed = rows + positions + w["embeddings.token_type_embeddings.weight"][0]
    eps = model.config.layer_norm_eps
    states = normed_layer(summed, w, "embeddings.LayerNorm", eps)
    outputs = []
    for number, layer in enumerate(model.encoder.layer):
        at = f"encoder.layer.{number}"
        attended = layer.attention(states[None])[0][0]
        output = affine(gelu(affine(attended, w, f"{at}.intermediate.dense")), w, f"{at}.output.dense")
        outputs.append(output)
        states = normed_layer(output + attended, w, f"{at}.output.LayerNorm", eps)
    return rows, outputs, states


def slow_audio(
    folder: Path, sound: npt.NDArray[np.float32]
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    model, w = in_float64(Data2VecAudioModel.from_pretrained(folder, attn_implementation="eager"))
    heard = sound.astype(np.float64)
    heard = (heard - heard.mean()) / np.sqrt(heard.var() + 1e-7)
    heard = np.pad(heard, (0, max(0, 60 - len(heard))))
    frames = torch.from_numpy(heard)[None]
    for number, stride in enumerate((5, 4, 4)):
        at = f"feature_extractor.conv_layers.{number}"
        kernel = w[f"{at}.conv.weight"]
        windows = frames.unfold(1, kernel.shape[2], stride)
        frames = torch.einsum("ctk,dck->td", windows, kernel)
        frames = gelu(normed_layer(frames, w, f"{at}.layer_norm", 1e-5)).T
    eps = model.config.layer_norm_eps
    states = affine(
        normed_layer(frames.T, w, "feature_projection.layer_norm", eps), w, "feature_projection.projection"
    )
    states = states + model.encoder.pos_conv_embed(states[None])[0]
    states = normed_layer(states, w, "encoder.layer_norm", eps)
    outputs = []
    for number, layer in enumerate(model.encoder.layers):
        at = f"encoder.layers.{number}"
        attended = normed_layer(states + layer.attention(states[None])[0][0], w, f"{at}.layer_norm", eps)
        inner = gelu(affine(attended, w, f"{at}.feed_forward.intermediate_dense"))
        output = affine(inner, w, f"{at}.feed_forward.output_dense")
        outputs.append(output)
        states = normed_layer(attended + output, w, f"{at}.final_layer_norm", eps)
    return frames.T, outputs, states


@pytest.mark.parametrize("normalise", ["layer", "instance", "none"])
@pytest.mark.parametrize("k", [1, 3, DEPTH])
def test_targets_equal_the_formula_in_float64(
    image_folder: Path, text_folder: Path, audio_folder: Path, k: int, normalise: Any
) -> None:
    chosen: dict[str, Any] = {"k": k, "normalise": normalise}
    cases: list[tuple[Any, Any, list[Any], str]] = [
        (Data2VecImage(model=str(image_folder), **chosen), slow_image, images(2), "patch_embeddings"),
        (Data2VecText(model=str(text_folder), max_length=10, **chosen), slow_text, CAPTIONS, "token_embeddings"),
        (
            Data2VecAudio(model=str(audio_folder), duration_s=0.2, **chosen),
            slow_audio,
            sounds(),
            "patch_embeddings",
        ),
    ]
    for config, slow, views, inputs in cases:
        outputs = config.build("cpu")(views)
        folder = Path(config.model)
        for row, view in enumerate(views):
            with torch.no_grad():
                rows, blocks, _ = slow(folder, view)
                targets = slow_topk_mean(blocks, k, normalise, layer_normed=isinstance(config, Data2VecImage))
            assert outputs.get("length", {row: len(rows)})[row] == len(rows)
            np.testing.assert_allclose(outputs[inputs][row, : len(rows)], rows, atol=1e-5)
            np.testing.assert_allclose(outputs["targets"][row, : len(rows)], targets, atol=3e-5)
            assert not outputs["targets"][row, len(rows) :].any()
            assert not outputs[inputs][row, len(rows) :].any()


def test_last_is_what_the_last_block_gives(image_folder: Path, text_folder: Path, audio_folder: Path) -> None:
    chosen: dict[str, Any] = {"targets": "last", "take": ("targets", "features")}
    cases: list[tuple[Any, Any, list[Any]]] = [
        (Data2VecImage(model=str(image_folder), **chosen), slow_image, images(2)),
        (Data2VecText(model=str(text_folder), max_length=10, **chosen), slow_text, CAPTIONS),
        (Data2VecAudio(model=str(audio_folder), duration_s=0.2, **chosen), slow_audio, sounds()),
    ]
    for config, slow, views in cases:
        outputs = config.build("cpu")(views)
        assert list(outputs) == ["targets", "features"]
        for row, view in enumerate(views):
            with torch.no_grad():
                _, _, last = slow(Path(config.model), view)
            np.testing.assert_allclose(outputs["targets"][row, : len(last)], last, atol=3e-5)
            np.testing.assert_allclose(outputs["features"][row], last.mean(0), atol=3e-5)


def test_last_equals_the_librarys_last_hidden_state(
    image_folder: Path, text_folder: Path, audio_folder: Path
) -> None:
    pixels = torch.stack([(torch.from_numpy(i).permute(2, 0, 1).float() / 255 - 0.4) / 0.2 for i in images(2)])
    with torch.inference_mode():
        expected = Data2VecVisionModel.from_pretrained(image_folder)(pixels).last_hidden_state[:, 1:]
    outputs = Data2VecImage(model=str(image_folder), targets="last").build("cpu")(images(2))
    np.testing.assert_allclose(outputs["targets"], expected, atol=1e-5)

    tokens = transformers.AutoTokenizer.from_pretrained(text_folder)(CAPTIONS[1], return_tensors="pt")
    with torch.inference_mode():
        expected = Data2VecTextModel.from_pretrained(text_folder)(tokens["input_ids"]).last_hidden_state[0]
    outputs = Data2VecText(model=str(text_folder), targets="last", max_length=8).build("cpu")(CAPTIONS)
    np.testing.assert_allclose(outputs["targets"][1], expected, atol=1e-5)

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(audio_folder)
    sound = sounds()[1]
    with torch.inference_mode():
        values = extractor(sound, sampling_rate=RATE_HZ, return_tensors="pt")["input_values"]
        expected = Data2VecAudioModel.from_pretrained(audio_folder)(values).last_hidden_state[0]
    outputs = Data2VecAudio(model=str(audio_folder), targets="last", duration_s=0.2).build("cpu")(sounds())
    np.testing.assert_allclose(outputs["targets"][1, : len(expected)], expected, atol=1e-5)


def every(image_folder: Path, text_folder: Path, audio_folder: Path) -> list[tuple[Any, list[Any]]]:
    return [
        (Data2VecImage(model=str(image_folder), k=2), images(4)),
        (Data2VecText(model=str(text_folder), k=2, max_length=10, normalise="instance"), CAPTIONS),
        (Data2VecAudio(model=str(audio_folder), k=2, duration_s=0.2), sounds()),
    ]


def test_an_item_does_not_depend_on_its_batch(image_folder: Path, text_folder: Path, audio_folder: Path) -> None:
    for config, views in every(image_folder, text_folder, audio_folder):
        model = config.build("cpu")
        together = model(views)
        for row, view in enumerate(views):
            for name, values in model([view]).items():
                np.testing.assert_allclose(values[0], together[name][row], atol=1e-5)


def test_fields_say_what_comes_out_and_take_chooses(
    image_folder: Path, text_folder: Path, audio_folder: Path
) -> None:
    for config, views in every(image_folder, text_folder, audio_folder):
        for taken in (config, replace(config, take=("targets",))):
            outputs = taken.build("cpu")(views)
            described = {field.name: (len(views), *field.shape) for field in taken.fields()}
            assert described == {name: values.shape for name, values in outputs.items()}
            assert all(values.dtype == (np.int32 if n == "length" else np.float32) for n, values in outputs.items())
        assert [field.name for field in taken.fields()] == ["targets"]
        assert taken.notes() == ()


def test_fields_load_no_weights(image_folder: Path, text_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    for config, _ in every(image_folder, text_folder, audio_folder):
        folder = tmp_path / config.kind
        folder.mkdir()
        for file in Path(config.model).iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        assert replace(config, model=str(folder)).fields() == config.fields()
        with pytest.raises(DataError, match="no file named"):
            replace(config, model=str(folder)).build("cpu")


def test_targets_are_described(image_folder: Path, text_folder: Path, audio_folder: Path) -> None:
    image, text, audio = (
        {field.name: field for field in config.fields()}["targets"].about
        for config, _ in every(image_folder, text_folder, audio_folder)
    )
    top_two = {"kind": "topk_mean", "k": 2, "blocks": [2, 3]}
    prefix = {"num_prefix_tokens": 1, "num_cls_tokens": 1, "num_register_tokens": 0}
    geometry = {"grid": [4, 4], "patch_size": [8, 8]} | prefix
    assert image == top_two | {"normalise": "layer", "layer_normed": True} | geometry
    assert text == top_two | {"normalise": "instance", "layer_normed": False, "special_tokens": True}
    assert audio == top_two | {"normalise": "instance", "layer_normed": False, "frame_s": 60 / 16e3, "hop_s": 5e-3}


@pytest.mark.parametrize(
    ("config", "modality", "version", "k", "normalise"),
    [
        (Data2VecImage, "image", 1, 6, "layer"),
        (Data2VecImage, "image", 2, 10, "instance"),
        (Data2VecText, "text", 1, 10, "layer"),
        (Data2VecText, "text", 2, 12, "instance"),
        (Data2VecAudio, "audio", 1, 8, "instance"),
        (Data2VecAudio, "audio", 2, 8, "instance"),
    ],
)
def test_defaults_are_those_of_the_published_models(
    config: Any, modality: str, version: Any, k: int, normalise: str
) -> None:
    targets = settle(config(model="x", version=version), modality, 12)
    assert (targets.blocks, targets.normalise) == (tuple(range(12 - k, 12)), normalise)
    assert targets.layer_normed == (modality == "image")


def test_one_forward_pass_gives_every_field(image_folder: Path, text_folder: Path, audio_folder: Path) -> None:
    # Of the four sounds, two are equally long and share a pass.
    expected = {"data2vec_image": [4], "data2vec_text": [3], "data2vec_audio": [2, 1, 1]}
    for config, views in every(image_folder, text_folder, audio_folder):
        model, sizes = config.build("cpu"), []
        for block in model._model.encoder.children():
            if isinstance(block, torch.nn.ModuleList):
                block[0].register_forward_hook(lambda _m, inputs, _o, sizes=sizes: sizes.append(len(inputs[0])))
        model(views)
        assert sizes == expected[config.kind]


@pytest.mark.parametrize(("precision", "cosine"), [("bfloat16", 0.98), ("float16", 0.9995)])
def test_half_precision_is_near_float32(
    image_folder: Path, text_folder: Path, audio_folder: Path, precision: Any, cosine: float
) -> None:
    for config, views in every(image_folder, text_folder, audio_folder):
        exact, half = (replace(config, precision=each).build("cpu")(views) for each in ("float32", precision))
        for name in exact.keys() - {"length"}:
            a, b = (made[name].reshape(-1, made[name].shape[-1]) for made in (exact, half))
            real = a.any(axis=1)
            near = (a * b).sum(1)[real] / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))[real]
            told = f"cosine against float32 {near.mean():.6f}, least {near.min():.6f}"
            print(f"{config.kind} {precision} {name}: {told}")
            assert near.mean() > cosine


def test_looked_up_ids_are_the_token_embeddings_exactly(text_folder: Path) -> None:
    config = Data2VecText(model=str(text_folder), k=2, max_length=6, encodings=Encodings(token_embeddings=Lookup()))
    model = config.build("cpu")
    outputs, constants = model(CAPTIONS), model.constants()
    field = config.fields()[0]
    decoded = field.decode(field.encode(outputs["token_embeddings.ids"], constants), constants, np)
    np.testing.assert_array_equal(decoded, outputs["token_embeddings"])
    assert outputs["length"].max() == 6  # the long caption is cut


def test_checkpoint_with_a_head_is_its_encoder(text_folder: Path, tmp_path: Path) -> None:
    model = transformers.Data2VecTextForMaskedLM(Data2VecTextConfig.from_pretrained(text_folder))
    model.data2vec_text.load_state_dict(
        {
            name: values
            for name, values in load_file(text_folder / "model.safetensors").items()
            if not name.startswith("pooler.")
        }
    )
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((text_folder / name).read_bytes())
    expected = Data2VecText(model=str(text_folder), k=2, max_length=10).build("cpu")(CAPTIONS)
    for name, values in Data2VecText(model=str(tmp_path), k=2, max_length=10).build("cpu")(CAPTIONS).items():
        np.testing.assert_array_equal(values, expected[name])


def test_checkpoint_that_lacks_a_weight_is_refused(audio_folder: Path, tmp_path: Path) -> None:
    for file in audio_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(audio_folder / "model.safetensors")
    del weights["encoder.layers.3.feed_forward.output_dense.weight"]
    del weights["masked_spec_embed"]  # of training only
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 of the model's arrays, such as 'encoder.layers.3.feed_forward"):
        Data2VecAudio(model=str(tmp_path), k=2).build("cpu")


def test_mistakes_are_one_line(image_folder: Path, text_folder: Path) -> None:
    with pytest.raises(ConfigError, match="k: the top 6 blocks, and the model has 4; give a smaller k"):
        Data2VecImage(model=str(image_folder)).fields()
    with pytest.raises(ConfigError, match="k and normalise belong to topk_mean"):
        Data2VecImage(model=str(image_folder), targets="last", k=2).fields()
    with pytest.raises(ConfigError, match="is of a 'data2vec-text' model, not 'data2vec-vision'"):
        Data2VecImage(model=str(text_folder), k=2).fields()
    with pytest.raises(ConfigError, match="max_length: 20 tokens, and the model has positions for 19"):
        Data2VecText(model=str(text_folder), max_length=20, k=2).fields()


def test_overridden_preprocessing_is_noted_and_recorded(image_folder: Path) -> None:
    config = Data2VecImage(model=str(image_folder), k=2, preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5)))
    assert len(config.notes()) == 1
    assert "preprocessing.mean" in config.notes()[0]
    assert config.recipe()["preprocessing"]["mean"] == (0.5, 0.5, 0.5)


def test_configurations_name_the_kinds(image_folder: Path) -> None:
    tree = {"kind": "data2vec_image", "model": str(image_folder), "targets": "topk_mean", "k": 3}
    made = TypeAdapter(ImageEncoder).validate_python(tree)
    assert made == Data2VecImage(model=str(image_folder), k=3)
