import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform

from contract.encodings import Pixels
from contract.errors import ConfigError, DataError, MissingExtraError
from contract.views import ImageView, Item
from encoders import TimmImage
from encoders.image_model import Encodings
from encoders.image_processor import Preprocessing

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 7}
REGISTERS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
ALL = ("patch_embeddings", "patch_features", "cls", "registers", "features", "logits")
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
    ("xcit_nano_12_p16_224", {"num_classes": 7}, "patch_embed", [2, 2]),
    ("eva02_tiny_patch14_224", SMALL_VIT | {"num_classes": 7}, "patch_embed", [4, 4]),
]


def saved(tmp_path: Path, model: str, args: dict[str, Any]) -> tuple[torch.nn.Module, TimmImage]:
    torch.manual_seed(0)
    made = timm.create_model(model, pretrained=False, **args).eval()
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    config = TimmImage(
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
    output = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    tokens = output if output.ndim == 3 else output.flatten(1, 2) if "swin" in model else output.flatten(2).mT
    expected = {"patch_embeddings": tokens, "features": features, "logits": logits}

    outputs = config.build("cpu")(images)
    described = {field.name: field for field in config.fields()}
    assert set(outputs) == set(described) == set(expected)
    for name, value in outputs.items():
        assert value.shape == (3, *described[name].shape)
        np.testing.assert_allclose(value, expected[name].numpy(), atol=2e-5, rtol=1e-4)
    about = described["patch_embeddings"].about
    assert (about["module"], about["grid"], about["patch_size"]) == (module, grid, [32 // side for side in grid])


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
    config = TimmImage(model=model, model_args=args, preprocessing=Preprocessing(input_size=(3, 32, 32)))
    shapes = {field.name: field.shape for field in config.fields()}
    assert shapes["patch_embeddings"] == shape
    assert ("logits" in shapes) == (args.get("num_classes") != 0)


def test_input_that_the_model_does_not_take_is_refused() -> None:
    config = TimmImage(model="vit_tiny_patch16_224", preprocessing=Preprocessing(input_size=(3, 384, 384)))
    with pytest.raises(ConfigError, match=r"does not take inputs of \[3, 384, 384\]"):
        config.fields()


@pytest.mark.parametrize("take", [None, ("logits",), ("features", "patch_embeddings"), ALL])
def test_one_forward_pass_gives_every_field(tmp_path: Path, take: tuple[str, ...] | None) -> None:
    _, config = saved(tmp_path, "vit_small_patch14_reg4_dinov2", REGISTERS | {"num_classes": 7})
    model = replace(config, take=take).build("cpu")
    calls: list[int] = []
    model._outputs._model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    assert set(model(views(4))) == set(take or ("patch_embeddings", "features", "logits"))
    assert len(calls) == 1


@pytest.mark.parametrize("model", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_tokens_of_the_last_layer_equal_direct_calls_of_timm(tmp_path: Path, model: str) -> None:
    direct, config = saved(tmp_path, model, REGISTERS)
    config = replace(config, take=("patch_features", "cls", "registers", "features"))
    data = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    pixels = (np.stack(views(3)) / np.float32(255) - np.float32(data["mean"])) / np.float32(data["std"])
    with torch.inference_mode():
        final = direct.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    outputs = config.build("cpu")(views(3))
    expected = {"cls": final[:, 0], "registers": final[:, 1:5], "patch_features": final[:, 5:]}
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value.numpy(), atol=2e-5, rtol=1e-4)
    fields = {field.name: field for field in config.fields()}
    assert {name: (3, *field.shape) for name, field in fields.items()} == {n: v.shape for n, v in outputs.items()}
    assert fields["patch_features"].about == {
        "grid": [4, 4],
        "patch_size": [8, 8],
        "num_prefix_tokens": 5,
        "num_cls_tokens": 1,
        "num_register_tokens": 4,
    }


@pytest.mark.parametrize(
    ("model", "grid"), [("mvitv2_small_cls", [7, 7]), ("twins_svt_small", [7, 7]), ("volo_d1_224", [14, 14])]
)
def test_patches_of_hierarchical_models_are_told_from_their_cls_token(model: str, grid: list[int]) -> None:
    fields = {field.name: field for field in TimmImage(model=model, take=("patch_features",)).fields()}
    assert fields["patch_features"].about["grid"] == grid
    assert fields["patch_features"].shape[0] == grid[0] * grid[1]


def test_model_whose_patches_are_not_found_asks_for_tokens() -> None:
    with pytest.raises(ConfigError, match="name another as `tokens`, or leave patch_embeddings out of `take`"):
        TimmImage(model="crossvit_9_240").fields()
    assert [field.name for field in TimmImage(model="crossvit_9_240", take=("logits",)).fields()] == ["logits"]


def test_field_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="take: 'registers' is not among what the model gives: patch_emb"):
        TimmImage(model="resnet10t", take=("registers", "patch_embeddings")).fields()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(tmp_path: Path, precision: Any) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    exact, half = (replace(config, precision=one).build("cpu")(views(4)) for one in ("float32", precision))
    for name in ("features", "logits"):
        cosine = (exact[name] * half[name]).sum(1) / np.linalg.norm(exact[name], axis=1)
        assert (cosine / np.linalg.norm(half[name], axis=1)).min() > 0.999


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_checkpoint_in_its_authors_names_is_converted(tmp_path: Path, wrapper: str) -> None:
    direct, config = saved(tmp_path, "vit_small_patch14_reg4_dinov2", REGISTERS)
    state = dict(direct.state_dict())
    # As DINOv2's own code has them: the CLS token has a position, and a token for masked patches.
    first = torch.randn(1, 1, 24) * 1e-6
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - first
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 24)
    torch.save({wrapper: state}, tmp_path / "original.pth")
    other = replace(config, checkpoint=str(tmp_path / "original.pth"))
    np.testing.assert_allclose(
        other.build("cpu")(views(2))["features"], config.build("cpu")(views(2))["features"], atol=1e-5
    )


def test_classifiers_checkpoint_serves_the_model_without_classes(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    without = replace(config, model_args=SMALL_VIT | {"num_classes": 0})
    outputs = without.build("cpu")(views(2))
    assert "logits" not in outputs
    np.testing.assert_array_equal(outputs["features"], config.build("cpu")(views(2))["features"])


@pytest.mark.parametrize(("model", "name"), [("resnet10t", "layer1.0.conv1.weight"), ("dla34", "level0.0.weight")])
def test_weights_that_are_missing_are_named(tmp_path: Path, model: str, name: str) -> None:
    direct, config = saved(tmp_path, model, {"num_classes": 7})
    state = direct.state_dict()
    del state[name]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=name):
        config.build("cpu")


@pytest.mark.parametrize("is_safe", [True, False])
def test_folder_in_timms_own_format_brings_its_preprocessing(tmp_path: Path, is_safe: bool) -> None:
    direct, config = saved(tmp_path, *FAMILIES[0][:2])
    data = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.8, "interpolation": "bilinear"}
    timm.models.save_for_hf(direct, tmp_path / "folder", safe_serialization=is_safe, data_config=data)
    folder = TimmImage(model=f"local-dir:{tmp_path / 'folder'}")
    assert folder.view() == ImageView(height=32, width=32, crop_pct=0.8, interpolation="bilinear")
    assert (folder.recipe()["mean"], folder.recipe()["std"]) == (data["mean"], data["std"])
    assert folder.notes() == ()
    same = replace(config, preprocessing=Preprocessing(input_size=(3, 32, 32), mean=data["mean"], std=data["std"]))
    np.testing.assert_array_equal(folder.build("cpu")(views(2))["logits"], same.build("cpu")(views(2))["logits"])


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json is not timm's description of a model"):
        TimmImage(model=f"local-dir:{tmp_path}").fields()
    with pytest.raises(DataError, match="no such folder"):
        TimmImage(model=f"local-dir:{tmp_path / 'nowhere'}").fields()


def test_real_mobilenet_names_real_photographs() -> None:
    data = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
    checkpoint = data / "weights/mobilenetv2_100_in1k.fp16.safetensors"
    if not checkpoint.is_file():
        pytest.skip(f"no real data at {data}")
    half = (0.5, 0.5, 0.5)
    config = TimmImage(
        model="mobilenetv2_100",
        model_args={"pad_type": "same"},
        checkpoint=str(checkpoint),
        preprocessing=Preprocessing(mean=half, std=half),
    )
    with (data / "imagenet_sample/labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::4]
    files = [data / "imagenet_sample/images" / row["filename"] for row in rows]
    views = [config.view().load(Item(id=file.name, file=file)) for file in files]
    outputs = config.build("cpu")(views)
    hits = outputs["logits"].argmax(axis=1) == [int(row["index"]) for row in rows]
    assert hits.mean() > 0.75

    direct = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    direct.load_state_dict({name: value.float() for name, value in load_file(checkpoint).items()})
    pretrained = timm.get_pretrained_cfg("mobilenetv2_100").to_dict()
    transform = create_transform(
        **timm.data.resolve_data_config({"mean": half, "std": half}, pretrained_cfg=pretrained)
    )
    with torch.inference_mode():
        expected = direct(torch.stack([transform(Image.open(file).convert("RGB")) for file in files[:4]]))
    np.testing.assert_allclose(outputs["logits"][:4], expected.numpy(), atol=1e-3)


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
    config = TimmImage(
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
    assert config.recipe()["mean"] == (0.485, 0.456, 0.406)
    assert config.view().interpolation == "bicubic"
    other = TimmImage(
        model="mobilenetv2_050",
        checkpoint=config.checkpoint,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), crop_pct=1.0),
    )
    assert other.recipe()["mean"] == (0.5, 0.5, 0.5)
    assert other.view().crop_pct == 1.0
    assert other.recipe() != config.recipe()
    assert other.notes() == (
        "preprocessing.mean is (0.5, 0.5, 0.5), the model's own is (0.485, 0.456, 0.406)",
        "preprocessing.crop_pct is 1.0, the model's own is 0.875",
    )


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
    wrong = TimmImage(**settings)
    with pytest.raises(error, match=message):
        _ = [wrong.fields(), wrong.recipe()]


@pytest.mark.parametrize("content", [b"", b"no weights at all" * 20])
def test_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(content)
        config = TimmImage(model="resnet10t", checkpoint=str(tmp_path / name))
        with pytest.raises(DataError, match=r"broken.* can't be loaded into the model"):
            config.build("cpu")


def test_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    _, config = saved(tmp_path, *FAMILIES[0][:2])
    with pytest.raises(DataError, match="can't be loaded into the model"):
        TimmImage(model="resnet10t", checkpoint=config.checkpoint).build("cpu")


def test_weights_that_are_nowhere_say_how_to_put_them_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"resnet18.*give a local file as `checkpoint`"):
        TimmImage(model="resnet18.a1_in1k").recipe()
