"""Tiny models of every kind that can be exported, and pictures, captions and sounds for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from encoders.clip import ClipImage, ClipText
from encoders.data2vec import Data2VecAudio, Data2VecImage, Data2VecText
from encoders.ensemble import Ensemble
from encoders.huggingface_audio import HuggingFaceAudio
from encoders.huggingface_image import HuggingFaceImage
from encoders.huggingface_text import HuggingFaceText
from encoders.image_processor import Preprocessing
from encoders.log_mel import LogMel
from encoders.ngrams import Ngrams
from encoders.timm_image import TimmImage
from encoders.yamnet import Yamnet

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "dogs", "run", "runs", "on", "grass"]
CAPTIONS = [
    "a dog runs",
    "the dogs run on the grass",
    " dog ",
    "The grass!",
    "a dog on the dogs on the dog on a dog on grass",
]
SIDE = 32
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
CONVOLUTIONS: dict[str, Any] = SMALL | {
    "conv_dim": (16, 16, 12),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 3,
    "num_conv_pos_embedding_groups": 4,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder, and its fields that a student may read."""

    encoder: Any
    fields: tuple[str, ...]


def tokenizer(folder: Path) -> None:
    vocab = {word: number for number, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=vocab).save_pretrained(folder)


def timm_vit(folder: Path) -> Subject:
    args: dict[str, Any] = {"num_classes": 10, "img_size": SIDE, "patch_size": 8, "embed_dim": 24}
    args |= {"depth": 2, "num_heads": 2}
    save_file(timm.create_model("vit_tiny_patch16_224", **args).state_dict(), folder / "model.safetensors")
    fields = ("patch_embeddings", "patch_features", "features")
    encoder = TimmImage(
        model="vit_tiny_patch16_224",
        model_args=args,
        checkpoint=str(folder / "model.safetensors"),
        take=fields,
        preprocessing=Preprocessing(input_size=(3, SIDE, SIDE), crop_pct=0.9),
    )
    return Subject(encoder=encoder, fields=fields)


def timm_resnet(folder: Path) -> Subject:
    save_file(timm.create_model("resnet10t", num_classes=10).state_dict(), folder / "model.safetensors")
    encoder = TimmImage(
        model="resnet10t",
        model_args={"num_classes": 10},
        checkpoint=str(folder / "model.safetensors"),
        preprocessing=Preprocessing(input_size=(3, SIDE, 2 * SIDE), crop_mode="center"),
    )
    return Subject(encoder=encoder, fields=("patch_embeddings", "logits"))


def huggingface_vit(folder: Path) -> Subject:
    made = transformers.ViTConfig(**SMALL, image_size=SIDE, patch_size=8, num_labels=10)
    transformers.ViTForImageClassification(made).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    fields = ("patch_embeddings", "patch_features", "cls")
    return Subject(encoder=HuggingFaceImage(model=str(folder), take=fields), fields=fields)


def clip(folder: Path) -> None:
    text = SMALL | {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    made = transformers.CLIPConfig(
        vision_config=SMALL | {"image_size": SIDE, "patch_size": 8},
        text_config=text | {"max_position_embeddings": 16},
        projection_dim=20,
    )
    transformers.CLIPModel(made).save_pretrained(folder)
    square = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = {"image_processor_type": "CLIPImageProcessor", **square}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    tokenizer(folder)


def clip_image(folder: Path) -> Subject:
    clip(folder)
    return Subject(encoder=ClipImage(model=str(folder)), fields=("patch_embeddings", "embedding"))


def clip_text(folder: Path) -> Subject:
    clip(folder)
    return Subject(encoder=ClipText(model=str(folder)), fields=("token_embeddings", "embedding"))


def data2vec_image(folder: Path) -> Subject:
    made = transformers.Data2VecVisionConfig(**SMALL, image_size=SIDE, patch_size=8)
    transformers.Data2VecVisionModel(made).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.BeitImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)
    return Subject(encoder=Data2VecImage(model=str(folder), k=2), fields=("patch_embeddings",))


def ensemble(folder: Path) -> Subject:
    members = []
    for number, make in enumerate((timm_vit, huggingface_vit)):
        (folder / str(number)).mkdir()
        members.append(make(folder / str(number)).encoder)
    take = ("patch_embeddings", "features")
    members = [
        TimmImage(**{**vars_of(members[0]), "take": take}),
        HuggingFaceImage(**{**vars_of(members[1]), "take": ("features",)}),
    ]
    return Subject(encoder=Ensemble(members=tuple(members)), fields=("patch_embeddings", "features"))


def vars_of(encoder: Any) -> dict[str, Any]:
    return {name: getattr(encoder, name) for name in encoder.__dataclass_fields__}


def bert(folder: Path) -> Subject:
    made = transformers.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=20)
    transformers.BertModel(made).save_pretrained(folder)
    tokenizer(folder)
    take = ("token_embeddings", "last_hidden", "features", "length")
    return Subject(encoder=HuggingFaceText(model=str(folder), max_length=12, take=take), fields=take[:3])


def bert_last(folder: Path) -> Subject:
    encoder = HuggingFaceText(model=bert(folder).encoder.model, layer="last", max_length=12)
    return Subject(encoder=encoder, fields=("token_embeddings",))


def data2vec_text(folder: Path) -> Subject:
    made = transformers.Data2VecTextConfig(
        **SMALL, vocab_size=len(WORDS), pad_token_id=0, max_position_embeddings=20
    )
    transformers.Data2VecTextModel(made).save_pretrained(folder)
    tokenizer(folder)
    return Subject(encoder=Data2VecText(model=str(folder), k=2, max_length=12), fields=("token_embeddings",))


def ngrams(folder: Path) -> Subject:
    return Subject(encoder=Ngrams(width=16, max_length=12), fields=("token_embeddings",))


def wav2vec2(folder: Path) -> Subject:
    made = transformers.Wav2Vec2Config(**CONVOLUTIONS, num_labels=5, classifier_proj_size=10)
    transformers.Wav2Vec2ForSequenceClassification(made).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    take = ("patch_embeddings", "patch_features", "features", "length")
    return Subject(encoder=HuggingFaceAudio(model=str(folder), duration_s=0.2, take=take), fields=take[:3])


def data2vec_audio(folder: Path) -> Subject:
    made = transformers.Data2VecAudioConfig(**CONVOLUTIONS, conv_pos_kernel_size=7)
    transformers.Data2VecAudioModel(made).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return Subject(encoder=Data2VecAudio(model=str(folder), k=2, duration_s=0.2), fields=("patch_embeddings",))


def yamnet(folder: Path) -> Subject:
    made = timm.create_model("resnet10t", in_chans=1, num_classes=9)
    save_file(made.state_dict(), folder / "model.safetensors")
    encoder = Yamnet(
        checkpoint=str(folder / "model.safetensors"),
        model="resnet10t",
        model_args={},
        num_classes=9,
        duration_s=2.0,
    )
    return Subject(encoder=encoder, fields=("features", "patch_embeddings"))


def log_mel(folder: Path) -> Subject:
    return Subject(encoder=LogMel(duration_s=0.5), fields=("patch_embeddings",))


MAKERS: dict[str, Callable[[Path], Subject]] = {
    "image/timm": timm_vit,
    "image/timm resnet": timm_resnet,
    "image/huggingface_image": huggingface_vit,
    "image/clip_image": clip_image,
    "image/data2vec_image": data2vec_image,
    "image/ensemble": ensemble,
    "text/huggingface_text": bert,
    "text/huggingface_text last": bert_last,
    "text/clip_text": clip_text,
    "text/data2vec_text": data2vec_text,
    "text/ngrams": ngrams,
    "audio/huggingface_audio": wav2vec2,
    "audio/data2vec_audio": data2vec_audio,
    "audio/yamnet": yamnet,
    "audio/log_mel": log_mel,
}


# What is exported again and again; the others are variations, which `make soak` exports too.
EXPORTED = (
    "image/timm",
    "text/huggingface_text",
    "text/clip_text",
    "text/ngrams",
    "audio/huggingface_audio",
    "audio/yamnet",
    "audio/log_mel",
)


@pytest.fixture(params=[pytest.param(name, marks=() if name in EXPORTED else pytest.mark.soak) for name in MAKERS])
def onnx_subject(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Subject]:
    """(modality, one of each kind), of which few are cheap enough for every time."""
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    return request.param.partition("/")[0], MAKERS[request.param](tmp_path / "model")


@pytest.fixture(params=list(MAKERS))
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Subject]:
    """(modality, one of each kind)."""
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    return request.param.partition("/")[0], MAKERS[request.param](tmp_path / "model")


@pytest.fixture
def make_subject(tmp_path: Path) -> Callable[[str], Subject]:
    """Make the one of this name."""

    def make(name: str) -> Subject:
        torch.manual_seed(0)
        (tmp_path / "model").mkdir()
        return MAKERS[name](tmp_path / "model")

    return make


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By modality: pictures of many shapes and modes, captions, sounds of many lengths and rates."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    images, sounds = [], []
    for number, (width, height, mode) in enumerate(
        [(40, 30, "RGB"), (33, 90, "RGB"), (200, 40, "L"), (32, 32, "P"), (64, 48, "I;16"), (57, 71, "CMYK")]
    ):
        coarse = rng.integers(0, 256, (7, 9, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        path = folder / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}"
        turned = Image.Exif()
        turned[0x0112] = 6  # to be turned by a quarter
        image.save(path, **({"exif": turned} if number == 1 else {}))
        images.append(str(path))
    for number, (rate_hz, seconds, channels) in enumerate(
        [(16000, 2.5, 1), (16000, 0.13, 2), (8000, 0.6, 1), (44100, 0.35, 2), (16000, 0.01, 1), (16000, 1.2, 1)]
    ):
        samples = rng.normal(0.01, 0.2, (round(rate_hz * seconds), channels)).clip(-1, 1)
        path = folder / f"{number}.{'flac' if number == 3 else 'wav'}"
        soundfile.write(path, samples, rate_hz)
        sounds.append(str(path))
    return {"image": images, "text": list(CAPTIONS), "audio": sounds}
