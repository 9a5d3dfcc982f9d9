"""A student made of the teacher's own blocks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
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

from contract import config
from contract.errors import ConfigError, DataError, StoreError
from contract.schema import FieldSet
from encoders import ENCODERS
from trainer.batch import Tokens
from trainer.students.adapters import Adapters, InputShape, Origin
from trainer.students.mlp import MlpStudent
from trainer.students.teacher_blocks import TeacherBlocks

DEPTH, WIDTH = 4, 24
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "dogs", "run", "runs", "on", "grass"]
CAPTIONS = ["a dog runs", "the dogs run on the grass", "dog"]
SIDE: dict[str, Any] = {"image_size": 32, "patch_size": 8}
VISION: dict[str, dict[str, Any]] = {
    "relative": {"use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    "shared relative": {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    "absolute": {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
    "all": {
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": True,
        "use_absolute_position_embeddings": True,
    },
}


def shaken(model: Any) -> Any:
    """The model with all of its weights drawn at random, so that each of them matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in model.named_parameters():
            drawn = torch.randn(values.shape, generator=generator)
            is_scale = ("orm" in name and name.endswith("weight")) or "lambda" in name
            values.copy_(1 + 0.3 * drawn if is_scale else 0.3 * drawn)
    return model.eval()


def save_image(folder: Path, **settings: Any) -> None:
    shaken(Data2VecVisionModel(Data2VecVisionConfig(**SMALL, **SIDE, **settings))).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BeitImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)


def save_text(folder: Path) -> None:
    settings = Data2VecTextConfig(**SMALL, vocab_size=len(WORDS), pad_token_id=0, max_position_embeddings=20)
    shaken(Data2VecTextModel(settings)).save_pretrained(folder)
    BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)


def save_audio(folder: Path) -> None:
    settings = Data2VecAudioConfig(
        **SMALL,
        conv_dim=(16, 16, 12),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 4, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=7,
        num_conv_pos_embedding_groups=4,
    )
    shaken(Data2VecAudioModel(settings)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    save_image(root / "image", **VISION["relative"])
    save_text(root / "text")
    save_audio(root / "audio")
    return {modality: root / modality for modality in ("image", "text", "audio")}


def encoder_of(modality: str, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The encoder that keeps the last block's output as its targets, and its configuration as a store has it."""
    chosen = {"kind": f"data2vec_{modality}", "model": str(folder), "targets": "last"} | settings
    if modality == "text":
        chosen["max_length"] = 9
    return config.parse(chosen, ENCODERS[modality], source="test"), chosen


def shape_of(modality: str, folder: Path, *, is_new: bool = True, **settings: Any) -> InputShape:
    encoder, chosen = encoder_of(modality, folder, **settings)
    field = encoder.fields()[0]
    fieldset = FieldSet(
        name="teacher",
        modality=modality,
        fields=encoder.fields(),
        batch_size=8,
        rows_per_shard=32,
        provenance=json.loads(json.dumps({"recipe": encoder.recipe(), "encoder": chosen})),
    )
    origin = Origin(fieldset=fieldset, field=field.name, name=f"tiny.zarr: {modality}/teacher")
    return InputShape(num_tokens=field.shape[0], width=field.shape[1], origin=origin, is_new=is_new)


def views(modality: str) -> Any:
    rng = np.random.default_rng(0)
    if modality == "text":
        return CAPTIONS
    if modality == "audio":
        return [rng.normal(0.1, 0.2, n).astype(np.float32) for n in (3200, 1700, 3200, 40)]
    return list(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))


def stored(modality: str, folder: Path, **settings: Any) -> tuple[Tokens, Tensor]:
    """What an encoder stores: the tokens that a student reads, and the last block's output [n, T, D]."""
    encoder, _ = encoder_of(modality, folder, **settings)
    fields = {name: torch.from_numpy(values) for name, values in encoder.build("cpu")(views(modality)).items()}
    length = fields.get("length")
    name = encoder.fields()[0].name
    longest = fields[name].shape[1] if length is None else int(length.max())
    return Tokens(fields[name][:, :longest], length), fields["targets"][:, :longest]


def built(modality: str, shape: InputShape, blocks: TeacherBlocks, width: int = WIDTH) -> Adapters:
    return Adapters({modality: blocks}, {modality: shape}, width)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_all_blocks_give_the_teachers_last_hidden_states(modality: str, folders: dict[str, Path]) -> None:
    tokens, expected = stored(modality, folders[modality])
    adapters = built(modality, shape_of(modality, folders[modality]), TeacherBlocks(depth=DEPTH))
    found, mask = adapters(modality, tokens)
    if mask is not None:
        found, expected = found[mask], expected[mask]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", VISION)
def test_positions_of_every_kind_of_vision_model_are_the_teachers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_image(tmp_path, **VISION[kind])
    tokens, expected = stored("image", tmp_path)
    found, _ = built("image", shape_of("image", tmp_path), TeacherBlocks(depth=DEPTH))("image", tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    model = transformers.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        normed = model.layernorm(found)  # is nothing at all in a model that pools the mean
        with_cls = model.eval()(encoder_of("image", tmp_path)[0]._processing.normalise(views("image"), "cpu"))
    torch.testing.assert_close(normed, with_cls.last_hidden_state[:, 1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_chosen_blocks_are_the_teachers_of_those_numbers(modality: str, folders: dict[str, Path]) -> None:
    shape = shape_of(modality, folders[modality])
    model = transformers.AutoModel.from_pretrained(folders[modality])
    layers = model.encoder.layers if modality == "audio" else model.encoder.layer
    for blocks, numbers in ((TeacherBlocks(layers=(1, 2)), [1, 2]), (TeacherBlocks(depth=3), [0, 2, 3])):
        own: Any = built(modality, shape, blocks).by_modality[modality]
        assert len(own.family.blocks) == len(numbers)
        for block, number in zip(own.family.blocks, numbers, strict=True):
            expected = list(layers[number].parameters())
            found = list(block.block.parameters())
            assert len(found) == len(expected)
            assert all(any(torch.equal(value, other) for other in expected) for value in found)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_every_weight_is_trained_and_none_is_the_teachers_that_nothing_reads(
    modality: str, folders: dict[str, Path]
) -> None:
    adapters = built(modality, shape_of(modality, folders[modality]), TeacherBlocks(depth=2))
    tokens, _ = stored(modality, folders[modality])
    found, _ = adapters(modality, tokens)
    torch.autograd.backward((found * torch.randn_like(found)).sum())
    lacking = [name for name, p in adapters.named_parameters() if p.grad is None or not p.requires_grad]
    assert [name.rpartition(".")[2] for name in lacking] == ["unseen"]


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_padding_changes_nothing(modality: str, folders: dict[str, Path]) -> None:
    adapters = built(modality, shape_of(modality, folders[modality]), TeacherBlocks(depth=2)).eval()
    tokens, _ = stored(modality, folders[modality])
    assert tokens.length is not None
    noisy = tokens.values.clone()
    for row, n in enumerate(tokens.length.tolist()):
        noisy[row, n:] = 50.0
    found, mask = adapters(modality, tokens._replace(values=noisy))
    expected, _ = adapters(modality, tokens)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_student_that_is_restored_needs_no_weights_of_the_teacher(
    modality: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / modality
    shutil.copytree(folders[modality], folder)
    shape = shape_of(modality, folder)
    first = built(modality, shape, TeacherBlocks(depth=2)).eval()
    tokens, _ = stored(modality, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises((StoreError, DataError)):
        built(modality, shape, TeacherBlocks(depth=2))
    origin = shape.origin
    restored = built(
        modality,
        InputShape(num_tokens=shape.num_tokens, width=shape.width, origin=origin, is_new=False),
        TeacherBlocks(depth=2),
    ).eval()
    restored.load_state_dict(first.state_dict())
    assert torch.equal(restored(modality, tokens)[0], first(modality, tokens)[0])


def test_teacher_whose_files_have_changed_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "image"
    shutil.copytree(folders["image"], folder)
    shape = shape_of("image", folder)
    save_image(folder, **VISION["absolute"])
    with pytest.raises(StoreError, match="its encoder is not the one that filled the store"):
        built("image", shape, TeacherBlocks(depth=2))


def test_hidden_token_is_told_from_a_seen_one(folders: dict[str, Path]) -> None:
    adapters = built("image", shape_of("image", folders["image"]), TeacherBlocks(depth=2)).eval()
    tokens, _ = stored("image", folders["image"])
    masked = torch.zeros(tokens.values.shape[:2], dtype=torch.bool)
    masked[:, 3] = True
    other = tokens.values.clone()
    other[:, 3] = 7.0
    found, _ = adapters("image", tokens._replace(masked=masked))
    again, _ = adapters("image", Tokens(other, None, masked))
    assert torch.equal(found, again)
    assert not torch.allclose(found, adapters("image", tokens)[0])


def test_recomputed_blocks_have_the_same_gradients(folders: dict[str, Path]) -> None:
    gradients: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        adapters = built("text", shape_of("text", folders["text"]), TeacherBlocks(depth=2))
        for block in adapters.by_modality["text"].family.blocks:  # type: ignore[union-attr]
            block.recompute = recompute
        found, _ = adapters("text", stored("text", folders["text"])[0])
        torch.autograd.backward(found.square().sum())
        gradients.append({name: p.grad for name, p in adapters.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_dropout_is_the_settings_and_not_the_teachers(folders: dict[str, Path]) -> None:
    tokens, _ = stored("text", folders["text"])
    for dropout in (0.0, 0.3):
        adapters = built("text", shape_of("text", folders["text"]), TeacherBlocks(depth=2, dropout=dropout))
        one, other = (adapters("text", tokens)[0] for _ in range(2))
        assert torch.equal(one, other) == (dropout == 0)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[], TeacherBlocks], int, str]] = {
    "width": ({}, lambda: TeacherBlocks(depth=2), 32, r"24 wide and nothing is projected: set student\.width"),
    "depth": ({}, lambda: TeacherBlocks(depth=5), WIDTH, "block 4 is asked for, and the teacher has 4"),
    "layers": ({}, lambda: TeacherBlocks(layers=(1, 9)), WIDTH, "block 9 is asked for, and the teacher has 4"),
    "field": (
        {"take": ("targets",)},
        lambda: TeacherBlocks(depth=2),
        WIDTH,
        r"blocks read patch_embeddings, and the recipe's inputs\.image is targets",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told_in_one_line(name: str, folders: dict[str, Path]) -> None:
    settings, blocks, width, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        built("image", shape_of("image", folders["image"], **settings), blocks(), width)


def test_other_architectures_are_refused() -> None:
    chosen = {"kind": "log_mel"}
    encoder: Any = config.parse(chosen, ENCODERS["audio"], source="test")
    fieldset = FieldSet(
        name="ears",
        modality="audio",
        fields=encoder.fields(),
        batch_size=8,
        rows_per_shard=32,
        provenance=json.loads(json.dumps({"recipe": encoder.recipe(), "encoder": chosen})),
    )
    shape = InputShape(
        num_tokens=3, width=4, origin=Origin(fieldset=fieldset, field="patch_embeddings", name="a.zarr: audio/ears")
    )
    with pytest.raises(ConfigError, match=r"teacher_blocks are those of data2vec_image.*of kind log_mel"):
        built("audio", shape, TeacherBlocks(depth=2))


def test_both_ways_of_choosing_or_none_are_refused() -> None:
    for settings in ({}, {"layers": (0,), "depth": 2}):
        with pytest.raises(ValueError, match="give either `layers`"):
            TeacherBlocks(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in ascending order"):
        TeacherBlocks(layers=(2, 1))


def test_student_embeds_with_the_teachers_blocks(folders: dict[str, Path]) -> None:
    student = MlpStudent(width=WIDTH, embedding_dim=8, num_heads=2, adapters={"image": TeacherBlocks(depth=2)})
    module = student.build({"image": shape_of("image", folders["image"])}, 0)
    tokens, _ = stored("image", folders["image"])
    assert module({"image": tokens})["image/embedding"].shape == (3, 8)
