from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from contract.encodings import Pixels
from contract.errors import ConfigError, DataError, MissingExtraError
from contract.views import Item
from encoders import TimmClassifier
from encoders.timm_classifier import Encodings, Preprocessing

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 7}
# (model, arguments, module whose output is stored, grid of its tokens at the input size below)
FAMILIES = [
    ("vit_tiny_patch16_224", SMALL_VIT, "patch_embed", [4, 4]),
    ("deit_tiny_distilled_patch16_224", SMALL_VIT, "patch_embed", [4, 4]),
    ("resnet10t", {"num_classes": 7}, "layer4", [1, 1]),
    ("mobilenetv2_050", {"num_classes": 7, "pad_type": "same"}, "blocks.6", [1, 1]),
    ("mobilenetv3_small_050", {"num_classes": 7}, "blocks.5", [1, 1]),
    ("efficientnet_b0", {"num_classes": 7}, "blocks.6", [1, 1]),
    ("convnext_atto", {"num_classes": 7}, "stages.3", [1, 1]),
    ("swin_tiny_patch4_window7_224", {"num_classes": 7, "img_size": 32, "embed_dim": 24}, "layers.3", [1, 1]),
]


def saved(tmp_path: Path, model: str, args: dict[str, Any]) -> tuple[torch.nn.Module, TimmClassifier]:
    torch.manual_seed(0)
    made = timm.create_model(model, pretrained=False, **args).eval()
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    config = TimmClassifier(
        model=model,
        model_args=args,
        checkpoint=str(tmp_path / "model.safetensors"),
        preprocessing=Preprocessing(input_size=(3, 32, 32)),
    )
    return made, config


def views(num_views: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (num_views, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(("model", "args", "module", "grid"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_fields_equal_direct_calls_of_timm(
    tmp_path: Path, model: str, args: dict[str, Any], module: str, grid: list[int]
) -> None:
    direct, config = saved(tmp_path, model, args)
    images = views(3)
    caught: list[torch.Tensor] = []
    direct.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    data = timm.data.resolve_data_config(
        {"input_size": (3, 32, 32)}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict()
    )
    normalise = create_transform(**data | {"crop_pct": 1.0})
    with torch.inference_mode():
        batch = torch.stack([normalise(Image.fromarray(image)) for image in images])
        logits = direct(batch)
        features = direct.forward_head(direct.forward_features(batch), pre_logits=True)
    tokens = (
        caught[0]
        if caught[0].ndim == 3
        else caught[0].flatten(1, 2)
        if "swin" in model
        else caught[0].flatten(2).mT
    )
    expected = {"patch_embeddings": tokens, "features": features, "logits": logits}

    outputs = config.build("cpu")(images)
    described = {field.name: field for field in config.fields()}
    assert set(outputs) == set(described) == set(expected)
    for name, value in outputs.items():
        assert value.shape == (3, *described[name].shape)
        np.testing.assert_allclose(value, expected[name].numpy(), atol=2e-5, rtol=1e-4)
    assert described["patch_embeddings"].about == {"module": module, "grid": grid}


@pytest.mark.parametrize(
    ("model", "args", "shape"),
    [
        ("test_vit", {"dynamic_img_size": True}, (4, 64)),  # its patch embedding comes as [n, h, w, D]
        ("vit_tiny_patch16_224", SMALL_VIT | {"num_classes": 0}, (16, 24)),
    ],
)
def test_channels_last_tokens_and_models_without_classes_are_understood(
    model: str, args: dict[str, Any], shape: tuple[int, int]
) -> None:
    config = TimmClassifier(model=model, model_args=args, preprocessing=Preprocessing(input_size=(3, 32, 32)))
    shapes = {field.name: field.shape for field in config.fields()}
    assert shapes["patch_embeddings"] == shape
    assert ("logits" in shapes) == (args.get("num_classes") != 0)


def test_input_that_the_model_does_not_take_is_refused() -> None:
    config = TimmClassifier(model="vit_tiny_patch16_224", preprocessing=Preprocessing(input_size=(3, 384, 384)))
    with pytest.raises(ConfigError, match=r"does not take inputs of \[3, 384, 384\]"):
        config.fields()


def test_one_forward_pass_gives_every_field(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    calls = []
    model = config.build("cpu")
    inner = model._outputs._model
    inner.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model(views(4))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT),
        ("vit_tiny_patch16_224", SMALL_VIT | {"patch_size": 16}),
        ("vit_tiny_patch16_224", SMALL_VIT | {"pre_norm": True}),  # as CLIP's: a patch embedding without bias
        ("test_vit", {"dynamic_img_size": True}),  # its patch embedding comes as [n, h, w, D]
        ("eva02_tiny_patch14_224", {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}),
    ],
    ids=["patch-8", "patch-16", "no-bias", "channels-last", "eva"],
)
@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_stored_pixels_decode_to_the_patch_embeddings(
    tmp_path: Path, model: str, args: dict[str, Any], mean: tuple[float, float, float]
) -> None:
    _, config = saved(tmp_path, model, args)
    preprocessing = replace(config.preprocessing, mean=mean, std=(0.229, 0.224, 0.225))
    config = replace(config, preprocessing=preprocessing, encodings=Encodings(patch_embeddings=Pixels()))
    built = config.build("cpu")
    field = next(field for field in config.fields() if field.name == "patch_embeddings")
    outputs = built(views(3))
    stored = field.encode(outputs["patch_embeddings.pixels"], built.constants())
    decoded = field.decode(stored, built.constants(), np)
    exact = outputs["patch_embeddings"]
    assert decoded.shape == exact.shape == (3, *field.shape)
    # No further off than what float16 makes of the embeddings: half a unit in its last place, and float32's own.
    rounding = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float32) / 2
    assert (np.abs(decoded - exact) <= rounding + 1e-5).all()
    assert np.abs(decoded - exact).max() < 2e-5
    assert field.row_bytes == 32 * 32 * 3


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("mobilenetv2_050", {}),
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}),  # normalises its patches
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "tokens": "patch_embed"}),
        ("pvt_v2_b0", {"tokens": "patch_embed"}),  # overlapping patches
        ("vit_tiny_r_s16_p8_224", {}),  # a convolutional stem
        ("volo_d1_224", {"tokens": "patch_embed"}),
        ("vit_tiny_patch16_224", SMALL_VIT | {"tokens": "blocks.0"}),
        ("vit_tiny_patch16_224", SMALL_VIT | {"img_size": 36}),  # its patches leave an edge
    ],
)
def test_pixels_are_refused_where_tokens_are_no_linear_map_of_patches(model: str, args: dict[str, Any]) -> None:
    args = dict(args)
    config = TimmClassifier(
        model=model,
        tokens=args.pop("tokens", None),
        model_args=args,
        encodings=Encodings(patch_embeddings=Pixels()),
    )
    with pytest.raises(ConfigError, match=f"timm model {model} are not a linear map of square patches"):
        config.fields()


def test_nothing_is_kept_for_encodings_without_constants(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    model = config.build("cpu")
    assert model.constants() == {}
    assert not [name for name in model(views(1)) if "." in name]


def test_values_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    model = config.build("cpu")
    together, alone = model(views(5)), [model([view]) for view in views(5)]
    for name, value in together.items():
        np.testing.assert_allclose(value, np.concatenate([one[name] for one in alone]), atol=1e-5)


def test_preprocessing_is_the_models_own_unless_overridden(tmp_path: Path) -> None:
    _, config = saved(tmp_path, "mobilenetv2_050", {"num_classes": 7})
    assert config.recipe()["mean"] == [0.485, 0.456, 0.406]
    assert config.view().interpolation == "bicubic"
    other = TimmClassifier(
        model="mobilenetv2_050",
        checkpoint=config.checkpoint,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), crop_pct=1.0),
    )
    assert other.recipe()["mean"] == [0.5, 0.5, 0.5]
    assert other.view().crop_pct == 1.0
    assert other.recipe() != config.recipe()


def test_view_feeds_the_model(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    view = config.view().load(Item(id="a", file=tmp_path / "a.png"))
    assert config.build("cpu")([view])["logits"].shape == (1, 7)


def test_recipe_changes_with_the_weights(tmp_path: Path) -> None:
    made, config = saved(tmp_path, *FAMILIES[0][:2])
    before = config.recipe()
    save_file({name: value + 1 for name, value in made.state_dict().items()}, tmp_path / "model.safetensors")
    assert config.recipe()["weights"] != before["weights"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "resnet_nine"}, ConfigError, "timm has no model 'resnet_nine'"),
        ({"model": "resnet18.no_such_tag"}, ConfigError, "no pretrained weights"),
        ({"model_args": {"no_such": 1}}, ConfigError, "no_such"),
        ({"tokens": "blocks.99"}, ConfigError, "no module 'blocks.99'"),
        ({"checkpoint": "nowhere.safetensors"}, DataError, "no such file"),
    ],
)
def test_mistake_in_the_configuration_is_named(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    settings = {"model": config.model, "model_args": SMALL_VIT, "checkpoint": config.checkpoint} | change
    wrong = TimmClassifier(**settings)
    with pytest.raises(error, match=message):
        _ = [wrong.fields(), wrong.recipe()]


@pytest.mark.parametrize("content", [b"", b"no weights at all" * 20])
def test_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(content)
        config = TimmClassifier(model="resnet10t", checkpoint=str(tmp_path / name))
        with pytest.raises(DataError, match=r"broken.* can't be loaded into the model"):
            config.build("cpu")


def test_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    with pytest.raises(DataError, match="can't be loaded into the model"):
        TimmClassifier(model="resnet10t", checkpoint=config.checkpoint).build("cpu")


def test_weights_that_are_nowhere_say_how_to_put_them_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"resnet18.*give a local file as `checkpoint`"):
        TimmClassifier(model="resnet18.a1_in1k").recipe()
