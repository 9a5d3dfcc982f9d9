import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from contract import config
from contract.encodings import Int8
from contract.errors import ConfigError
from contract.views import ImageAugmentation, ImageView, Item, JointView
from encoders import ENCODERS
from encoders.clip import ClipImage
from encoders.custom import CustomImage
from encoders.ensemble import Encodings, Ensemble
from encoders.huggingface_image import HuggingFaceImage
from encoders.image_model import Encodings as ImageEncodings
from encoders.image_processor import Preprocessing
from encoders.outputs import in_float32, precisions
from encoders.timm_image import TimmImage

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = SMALL | {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 10}
OWN = {"interpolation": "bilinear", "mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2)}
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each kind one: 24, 24, 20 and 64 wide; all but CLIP with 10 classes; shown 32, 48, 32 and 32 pixels."""
    folder = tmp_path_factory.mktemp("members")
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, **VIT)
    torch.nn.init.normal_(vit.head.weight)
    save_file(vit.state_dict(), folder / "vit.safetensors")
    config = transformers.ViTConfig(**SMALL, image_size=48, patch_size=8, num_labels=10)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "classifier")
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder / "classifier")
    clip = transformers.CLIPConfig(
        vision_config=SMALL | {"image_size": 32, "patch_size": 8}, text_config=TEXT, projection_dim=20
    )
    transformers.CLIPModel(clip).save_pretrained(folder / "clip")
    square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = {"image_processor_type": "CLIPImageProcessor", **square}
    (folder / "clip/preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        from cifar_resnet import resnet20

        save_file(resnet20().state_dict(), folder / "resnet.safetensors")
        own = CustomImage(
            factory="cifar_resnet:resnet20",
            checkpoint=str(folder / "resnet.safetensors"),
            preprocessing=Preprocessing(input_size=(3, 32, 32), **OWN),
        )
        own.fields()
    return {
        "timm": TimmImage(model="vit_tiny_patch16_224", model_args=VIT, checkpoint=str(folder / "vit.safetensors")),
        "huggingface_image": HuggingFaceImage(model=str(folder / "classifier")),
        "clip_image": ClipImage(model=str(folder / "clip")),
        "custom": own,
    }


@pytest.fixture
def item(tmp_path: Path) -> Item:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 80)).save(tmp_path / "a.png")
    return Item(id="a", file=tmp_path / "a.png")


def shown(encoder: Ensemble, item: Item, num: int = 4) -> list[Any]:
    views, _ = encoder.view().load_views(item, ImageAugmentation(), seed=0, num_views=num - 1)
    return views


def slow_unit(row: npt.NDArray[Any]) -> Floats:
    return row.astype(np.float64) / np.sqrt(sum(float(x) ** 2 for x in row))


def slow_softmax(row: npt.NDArray[Any]) -> Floats:
    powers = np.exp(row.astype(np.float64) - float(row.max()))
    return powers / powers.sum()


def test_fields_equal_a_loop_over_the_members_in_float64(members: dict[str, Any], item: Item) -> None:
    chosen = [members[kind] for kind in ("timm", "huggingface_image", "custom")]
    encoder = Ensemble(members=tuple(chosen), weights=(1.0, 2.0, 5.0))
    views = shown(encoder, item)
    outputs = encoder.build("cpu")(views)
    assert set(outputs) == {"patch_embeddings", "features", "logits"}
    for row, one in enumerate(views):
        single = [member.build("cpu")([view]) for member, view in zip(chosen, one, strict=True)]
        features = np.concatenate([slow_unit(each["features"][0]) for each in single])
        np.testing.assert_allclose(outputs["features"][row], features, atol=1e-6)
        mean = sum(w / 8 * slow_softmax(s["logits"][0]) for w, s in zip((1, 2, 5), single, strict=True))
        np.testing.assert_allclose(outputs["logits"][row], np.log(mean), atol=2e-5)
        np.testing.assert_allclose(slow_softmax(outputs["logits"][row]), mean, atol=2e-6)
        np.testing.assert_allclose(outputs["patch_embeddings"][row], single[0]["patch_embeddings"][0], atol=1e-5)
    assert outputs["features"].dtype == outputs["logits"].dtype == np.float32


def test_cosine_of_rows_is_the_mean_of_the_members_cosines(members: dict[str, Any], item: Item) -> None:
    chosen = (members["clip_image"], members["timm"])
    encoder = Ensemble(members=chosen, take=("features",))
    views = shown(encoder, item, 2)
    one, other = (slow_unit(row) for row in encoder.build("cpu")(views)["features"])
    cosines = []
    for place, (member, name) in enumerate(zip(chosen, ("embedding", "features"), strict=True)):
        rows = member.build("cpu")([view[place] for view in views])[name]
        cosines.append(slow_unit(rows[0]) @ slow_unit(rows[1]))
    assert one @ other == pytest.approx(np.mean(cosines), abs=1e-6)


def test_fields_say_what_comes_out(members: dict[str, Any], item: Item) -> None:
    encoder = Ensemble(members=tuple(members.values()), encodings=Encodings(features=Int8()))
    fields = {field.name: field for field in encoder.fields()}
    assert {name: field.shape for name, field in fields.items()} == {
        "patch_embeddings": (16, 24),
        "features": (132,),
    }
    assert fields["features"].about == {
        "parts": ["features", "features", "embedding", "features"],
        "widths": [24, 24, 20, 64],
        "parts_normalised": True,
    }
    assert fields["features"].encoding == Int8()
    assert fields["patch_embeddings"].about["grid"] == [4, 4]
    outputs = encoder.build("cpu")(shown(encoder, item))
    assert {name: value.shape for name, value in outputs.items()} == {n: (4, *f.shape) for n, f in fields.items()}
    np.testing.assert_allclose(np.linalg.norm(outputs["features"], axis=1), 2, atol=1e-5)
    assert encoder.notes() == ("no logits: members.2 (clip_image) gives none",)


def test_members_of_one_view_share_it_and_others_see_the_same_region(members: dict[str, Any], item: Item) -> None:
    alike = Ensemble(members=(members["timm"], members["timm"]))
    assert alike.view() == members["timm"].view()
    assert isinstance(alike.view(), ImageView)
    apart = Ensemble(members=(members["timm"], members["huggingface_image"]))
    assert apart.view() == JointView(views=(members["timm"].view(), members["huggingface_image"].view()))
    assert [view.shape for view in apart.view().load(item)] == [(32, 32, 3), (48, 48, 3)]


def test_two_of_the_same_are_that_one(members: dict[str, Any], item: Item) -> None:
    encoder = Ensemble(members=(members["timm"], members["timm"]))
    views = [members["timm"].view().load(item)]
    twice, once = encoder.build("cpu")(views), members["timm"].build("cpu")(views)
    np.testing.assert_allclose(slow_softmax(twice["logits"][0]), slow_softmax(once["logits"][0]), atol=1e-6)
    np.testing.assert_allclose(twice["features"][0, :24], slow_unit(once["features"][0]), atol=1e-6)


def test_values_do_not_depend_on_the_batch(members: dict[str, Any], item: Item) -> None:
    encoder = Ensemble(members=tuple(members.values()))
    model, views = encoder.build("cpu"), shown(encoder, item)
    together, alone = model(views), [model([view]) for view in views]
    for name, value in together.items():
        np.testing.assert_allclose(value, np.concatenate([one[name] for one in alone]), atol=1e-5)


def test_each_member_runs_once_and_gives_what_is_stored_of_it(members: dict[str, Any], item: Item) -> None:
    encoder = Ensemble(members=(members["timm"], members["huggingface_image"]), take=("logits",))
    model, calls = encoder.build("cpu"), []
    for member in model._models:
        assert member._names == ("logits",)
        member._outputs._model.register_forward_hook(lambda *_: calls.append(1))
    blocks = [model._models[0]._outputs._model.blocks[0], model._models[1]._outputs._model.vit.layers[0]]
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(2))
    assert set(model(shown(encoder, item))) == {"logits"}
    assert calls.count(2) == 2


def test_members_with_other_classes_have_no_mean(members: dict[str, Any], tmp_path: Path) -> None:
    args = VIT | {"num_classes": 7}
    other = replace(members["timm"], model_args=args)
    encoder = Ensemble(members=(members["timm"], other))
    assert [field.name for field in encoder.fields()] == ["patch_embeddings", "features"]
    assert encoder.notes() == ("no logits: the members have different numbers of classes, 10, 7",)
    with pytest.raises(ConfigError, match=r"take: there can be no logits: the members have different .* 10, 7"):
        replace(encoder, take=("logits",)).fields()
    with pytest.raises(ConfigError, match="weights: they are of the mean of distributions, and the members have"):
        replace(encoder, weights=(1.0, 2.0)).fields()


def test_member_without_a_vector_leaves_the_distributions(members: dict[str, Any], item: Item) -> None:
    speechless = replace(members["custom"], take=("logits",))
    encoder = Ensemble(members=(members["timm"], speechless))
    assert [field.name for field in encoder.fields()] == ["patch_embeddings", "logits"]
    assert encoder.notes() == ("no features: members.1 (custom) gives none",)
    assert set(encoder.build("cpu")(shown(encoder, item))) == {"patch_embeddings", "logits"}
    with pytest.raises(ConfigError, match=r"take: there can be no features: members.1 \(custom\) gives none"):
        replace(encoder, take=("features",)).fields()
    with pytest.raises(ConfigError, match=r"neither features nor logits of all members: members\.1.*; members\.0"):
        Ensemble(members=(replace(members["clip_image"], take=("embedding",)), speechless)).fields()


def test_temperature_of_a_members_logits_is_heeded(
    members: dict[str, Any], item: Item, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "from cifar_resnet import ResNet\n"
    for name, about in (("warm", {"temperature": 4.0}), ("sigmoids", {"multi_label": True})):
        code += (
            f"def {name}():\n    made = ResNet(3, 10)\n    made.about = {{'logits': {about}}}\n    return made\n"
        )
    (tmp_path / "other_resnets.py").write_text(code)
    warm = replace(members["custom"], factory="other_resnets:warm")
    encoder = Ensemble(members=(warm, warm))
    views = [warm.view().load(item)]
    mean = slow_softmax(encoder.build("cpu")(views)["logits"][0])
    np.testing.assert_allclose(mean, slow_softmax(warm.build("cpu")(views)["logits"][0] / 4), atol=1e-6)
    several = replace(members["custom"], factory="other_resnets:sigmoids")
    assert "logits" not in [field.name for field in Ensemble(members=(several, several)).fields()]


def test_clip_may_stand_in_with_its_features_before_the_projection(members: dict[str, Any], item: Item) -> None:
    pooled = replace(members["clip_image"], take=("features",))
    encoder = Ensemble(members=(pooled, members["timm"]), take=("features",))
    assert encoder.fields()[0].about["parts"] == ["features", "features"]
    assert encoder.fields()[0].shape == (48,)
    both = replace(members["clip_image"], take=("features", "embedding"))
    with pytest.raises(ConfigError, match=r"members.0: it gives features and embedding; name one in its `take`"):
        Ensemble(members=(both, members["timm"])).fields()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "members.0.batch_size: the ensemble's own batch_size is the one that counts"),
        ({"encodings": ImageEncodings(features=Int8())}, "members.0.encodings: the ensemble's own encodings is"),
        ({"take": ("cls", "logits")}, "members.0.take: 'cls' is no part of an ensemble"),
    ],
)
def test_setting_of_a_member_that_would_not_be_looked_at_is_refused(
    members: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Ensemble(members=(replace(members["timm"], **change), members["timm"]))


def test_single_member_and_wrong_number_of_weights_are_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ensemble: members has 1; an ensemble has two or more"):
        Ensemble(members=(members["timm"],))
    with pytest.raises(ConfigError, match="ensemble: 3 weights for 2 members"):
        Ensemble(members=(members["timm"], members["timm"]), weights=(1.0, 1.0, 1.0))


def test_recipe_changes_with_members_and_with_the_shares_of_their_weights(members: dict[str, Any]) -> None:
    pair = (members["timm"], members["huggingface_image"])
    recipe = Ensemble(members=pair).recipe()
    assert json.loads(json.dumps(recipe)) == json.loads(json.dumps(Ensemble(members=pair).recipe()))
    assert Ensemble(members=pair, weights=(3.0, 3.0)).recipe() == recipe
    assert Ensemble(members=pair, weights=(3.0, 1.0)).recipe() != recipe
    assert Ensemble(members=(pair[1], pair[0])).recipe() != recipe
    overridden = replace(pair[0], preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3)))
    other = Ensemble(members=(overridden, pair[1]))
    assert other.recipe() != recipe
    assert other.notes() == (
        "members.0: preprocessing.mean is (0.1, 0.2, 0.3), the model's own is (0.5, 0.5, 0.5)",
    )


def test_precision_of_the_members_is_known_and_undone(members: dict[str, Any]) -> None:
    encoder = Ensemble(members=(replace(members["timm"], precision="bfloat16"), members["custom"]))
    assert precisions(encoder) == {"bfloat16"}
    assert precisions(in_float32(encoder)) == set()
    assert in_float32(encoder) == Ensemble(members=(members["timm"], members["custom"]))


def test_configuration_survives_a_dump(members: dict[str, Any]) -> None:
    encoder = Ensemble(members=tuple(members.values()), weights=(1.0, 1.0, 1.0, 2.0))
    assert config.parse(config.tree(encoder), ENCODERS["image"], source="dumped") == encoder
