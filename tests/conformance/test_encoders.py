"""What every kind of encoder holds to, whichever library it is of: a newcomer to a union passes this first."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from contract import config
from contract.errors import DataError
from contract.schema import Field
from contract.store import TargetStore
from contract.views import AudioView, Item, JointView, TextView
from encoders import ENCODERS
from encoders.clip import ClipImage, ClipText
from encoders.custom import CustomAudio, CustomImage, CustomText
from encoders.data2vec import Data2VecAudio, Data2VecImage, Data2VecText
from encoders.ensemble import Ensemble
from encoders.huggingface_audio import HuggingFaceAudio
from encoders.huggingface_image import HuggingFaceImage
from encoders.huggingface_text import HuggingFaceText
from encoders.image_processor import Preprocessing
from encoders.log_mel import LogMel
from encoders.ngrams import Ngrams
from encoders.outputs import in_float32, precisions
from encoders.timm_image import TimmImage
from encoders.yamnet import Yamnet
from pipeline.__main__ import main
from pipeline.settings import Encoders, Gate, Precompute, Views

HERE = Path(__file__).resolve().parent
# Relative to the largest value of a field: batches of other sizes sum in another order.
TOLERANCE = 1e-5
# The least cosine with float32 of any vector of any field.
LEAST_COSINE = {"bfloat16": 0.998, "float16": 0.9999}

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "dogs", "run", "runs", "on", "grass"]
CAPTIONS = ["a dog runs", "the dogs run on the grass", "dog", "the grass", "a dog on the dogs"]
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
PATCHES = ("patch_embeddings", "patch_features", "cls", "registers", "features", "logits")
OVERRIDE = Preprocessing(mean=(0.1, 0.2, 0.3))
NOTE = r"preprocessing\.mean is \(0\.1, 0\.2, 0\.3\), the model's own is \("
OWN_MODELS = """
import torch
from torch import nn

class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(128, 8), nn.Linear(8, 6)

    def forward(self, captions):
        ids = torch.zeros(len(captions), 12, dtype=torch.int64)
        for row, caption in enumerate(captions):
            ids[row, : len(caption)] = torch.tensor([ord(letter) % 128 for letter in caption[:12]])
        tokens = self.mix(self.embedding(ids)) * (ids > 0)[..., None]
        return {"token_embeddings": tokens, "features": tokens.sum(1), "length": (ids > 0).sum(1)}

class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        self.frames, self.head = nn.Conv1d(1, 8, 400, 160), nn.Linear(8, 5)

    def forward(self, sounds, lengths):
        frames = self.frames(sounds[:, None]).relu().mT
        features = frames.mean(1)
        return {"patch_embeddings": frames, "features": features, "logits": self.head(features)}

    about = {"patch_embeddings": {"frame_s": 0.025, "hop_s": 0.01}}

def letters():
    return Letters()

def frames():
    return Frames()
"""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder that takes every field it has, and the file of its weights (None: it has none).

    `other` is the same with another preprocessing, or another setting where that can't be overridden; its notes
    match `note` ("": there are none). `plans_with_weights` do not know their fields without.
    """

    encoder: Any
    weights: Path | None
    other: Any
    note: str = ""
    plans_with_weights: bool = False


def tokenizer(folder: Path) -> None:
    vocab = {word: number for number, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=vocab).save_pretrained(folder)


def extractor(folder: Path) -> None:
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def timm_vit(folder: Path, model: str = "vit_small_patch14_reg4_dinov2") -> Subject:
    is_vit = model.startswith("vit")
    args: dict[str, Any] = {"num_classes": 10}
    args |= {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2} if is_vit else {}
    save_file(timm.create_model(model, **args).state_dict(), folder / "model.safetensors")
    encoder = TimmImage(
        model=model,
        model_args=args,
        checkpoint=str(folder / "model.safetensors"),
        take=PATCHES if is_vit else ("patch_embeddings", "patch_features", "features", "logits"),
        preprocessing=Preprocessing(input_size=(3, SIDE, SIDE)),
    )
    other = replace(encoder, preprocessing=replace(OVERRIDE, input_size=(3, SIDE, SIDE)))
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=other, note=NOTE)


def timm_resnet(folder: Path) -> Subject:
    return timm_vit(folder, "resnet10t")


def huggingface_vit(folder: Path) -> Subject:
    made = transformers.ViTConfig(**SMALL, image_size=SIDE, patch_size=8, num_labels=10)
    transformers.ViTForImageClassification(made).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    encoder = HuggingFaceImage(
        model=str(folder), take=("patch_embeddings", "patch_features", "cls", "features", "logits")
    )
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, preprocessing=OVERRIDE),
        note=NOTE,
    )


def huggingface_dinov2(folder: Path) -> Subject:
    made = transformers.Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8
    )
    transformers.Dinov2WithRegistersModel(made).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    encoder = HuggingFaceImage(model=str(folder), take=tuple(name for name in PATCHES if name != "logits"))
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, preprocessing=OVERRIDE),
        note=NOTE,
    )


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
    encoder = ClipImage(
        model=str(folder), take=("patch_embeddings", "patch_features", "cls", "features", "embedding")
    )
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, preprocessing=OVERRIDE),
        note=NOTE,
        plans_with_weights=True,
    )


def clip_text(folder: Path) -> Subject:
    clip(folder)
    encoder = ClipText(model=str(folder))
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, max_length=6),
        note="max_length is 6, the model's own is 16",
        plans_with_weights=True,
    )


def data2vec_image(folder: Path) -> Subject:
    made = transformers.Data2VecVisionConfig(**SMALL, image_size=SIDE, patch_size=8)
    transformers.Data2VecVisionModel(made).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.BeitImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)
    encoder = Data2VecImage(model=str(folder), k=2)
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, preprocessing=OVERRIDE),
        note=NOTE,
    )


def custom_image(folder: Path) -> Subject:
    from cifar_resnet import resnet20

    save_file(resnet20().state_dict(), folder / "model.safetensors")
    own = Preprocessing(input_size=(3, SIDE, SIDE), interpolation="bilinear", mean=(0.4,) * 3, std=(0.2,) * 3)
    encoder = CustomImage(
        factory="cifar_resnet:resnet20", checkpoint=str(folder / "model.safetensors"), preprocessing=own
    )
    other = replace(encoder, preprocessing=replace(own, mean=(0.1, 0.2, 0.3)))
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=other)


def ensemble(folder: Path) -> Subject:
    made = []
    for number, make in enumerate((timm_vit, huggingface_vit, custom_image)):
        (folder / str(number)).mkdir()
        made.append(make(folder / str(number)))
    members = tuple(replace(subject.encoder, take=None) for subject in made)
    overridden = replace(made[0].other, take=None)
    return Subject(
        encoder=Ensemble(members=members, weights=(1.0, 2.0, 3.0)),
        weights=made[0].weights,
        other=Ensemble(members=(overridden, *members[1:]), weights=(1.0, 2.0, 3.0)),
        note=rf"members\.0: {NOTE}",
    )


def huggingface_text(folder: Path) -> Subject:
    made = transformers.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=20)
    transformers.BertModel(made).save_pretrained(folder)
    tokenizer(folder)
    encoder = HuggingFaceText(
        model=str(folder), max_length=12, take=("token_embeddings", "last_hidden", "features", "length")
    )
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=replace(encoder, max_length=5))


def data2vec_text(folder: Path) -> Subject:
    made = transformers.Data2VecTextConfig(
        **SMALL, vocab_size=len(WORDS), pad_token_id=0, max_position_embeddings=20
    )
    transformers.Data2VecTextModel(made).save_pretrained(folder)
    tokenizer(folder)
    encoder = Data2VecText(model=str(folder), k=2, max_length=12)
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=replace(encoder, max_length=5))


def custom_text(folder: Path) -> Subject:
    import own_models

    save_file(own_models.letters().state_dict(), folder / "model.safetensors")
    encoder = CustomText(factory="own_models:letters", checkpoint=str(folder / "model.safetensors"))
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, factory="own_models:Letters"),
    )


def ngrams(folder: Path) -> Subject:
    encoder = Ngrams(width=16, max_length=12)
    return Subject(encoder=encoder, weights=None, other=replace(encoder, max_length=5))


def wav2vec2(folder: Path) -> Subject:
    made = transformers.Wav2Vec2Config(**CONVOLUTIONS, num_labels=5, classifier_proj_size=10)
    transformers.Wav2Vec2ForSequenceClassification(made).save_pretrained(folder)
    extractor(folder)
    take = ("patch_embeddings", "patch_features", "features", "logits", "length")
    encoder = HuggingFaceAudio(model=str(folder), duration_s=0.2, take=take)
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=replace(encoder, duration_s=0.1))


def spectrogram_transformer(folder: Path) -> Subject:
    made = transformers.ASTConfig(
        **SMALL, patch_size=8, frequency_stride=5, time_stride=6, num_mel_bins=24, max_length=40, num_labels=5
    )
    transformers.ASTForAudioClassification(made).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=24, max_length=40).save_pretrained(folder)
    take = ("patch_embeddings", "patch_features", "features", "logits")
    encoder = HuggingFaceAudio(model=str(folder), duration_s=0.4, take=take)
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, duration_s=3.0),
        note=r"duration_s is 3, and the model hears the first 0\.42 s",
    )


def data2vec_audio(folder: Path) -> Subject:
    made = transformers.Data2VecAudioConfig(**CONVOLUTIONS, conv_pos_kernel_size=7)
    transformers.Data2VecAudioModel(made).save_pretrained(folder)
    extractor(folder)
    encoder = Data2VecAudio(model=str(folder), k=2, duration_s=0.2)
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=replace(encoder, duration_s=0.1))


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
    return Subject(
        encoder=encoder,
        weights=folder / "model.safetensors",
        other=replace(encoder, hop_s=0.96),
        note=r"hop_s is 0\.96, the model's own is 0\.48",
    )


def custom_audio(folder: Path) -> Subject:
    import own_models

    save_file(own_models.frames().state_dict(), folder / "model.safetensors")
    encoder = CustomAudio(factory="own_models:frames", checkpoint=str(folder / "model.safetensors"), duration_s=0.2)
    return Subject(encoder=encoder, weights=folder / "model.safetensors", other=replace(encoder, duration_s=0.1))


def log_mel(folder: Path) -> Subject:
    encoder = LogMel(duration_s=0.5)
    return Subject(encoder=encoder, weights=None, other=replace(encoder, num_bands=32))


# By modality, kind and, where one is not enough, architecture.
MAKERS: dict[str, Callable[[Path], Subject]] = {
    "image/timm": timm_vit,
    "image/timm resnet": timm_resnet,
    "image/huggingface_image": huggingface_vit,
    "image/huggingface_image dinov2": huggingface_dinov2,
    "image/clip_image": clip_image,
    "image/data2vec_image": data2vec_image,
    "image/custom": custom_image,
    "image/ensemble": ensemble,
    "text/huggingface_text": huggingface_text,
    "text/clip_text": clip_text,
    "text/data2vec_text": data2vec_text,
    "text/custom": custom_text,
    "text/ngrams": ngrams,
    "audio/huggingface_audio": wav2vec2,
    "audio/huggingface_audio spectrogram": spectrogram_transformer,
    "audio/data2vec_audio": data2vec_audio,
    "audio/yamnet": yamnet,
    "audio/custom": custom_audio,
    "audio/log_mel": log_mel,
}
WITH_WEIGHTS = [name for name in MAKERS if name not in ("text/ngrams", "audio/log_mel")]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Subject]]:
    """Makes each of them once."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(OWN_MODELS)

    @cache
    def make(name: str) -> Subject:
        torch.manual_seed(0)
        return MAKERS[name](tmp_path_factory.mktemp(name.replace("/", "-")))

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE.parent / "encoders")
        patch.syspath_prepend(folder)
        yield make


@pytest.fixture(scope="module", params=list(MAKERS))
def subject(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    return subjects(request.param)


@pytest.fixture(scope="module", params=WITH_WEIGHTS)
def weighted(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    return subjects(request.param)


def inputs(encoder: Any, equally_long: bool = False) -> list[Any]:
    """Five of what the encoder is shown, noise of different lengths where it has one."""
    view, random = encoder.view(), np.random.default_rng(0)

    def image(of: Any) -> npt.NDArray[np.uint8]:
        return random.integers(0, 256, (of.height, of.width, 3), dtype=np.uint8)

    if isinstance(view, TextView):
        return list(CAPTIONS)
    if isinstance(view, AudioView):
        shares = [1.0] * 5 if equally_long else [1.0, 0.5, 1.0, 0.3, 0.01]
        return [random.normal(0.05, 0.2, round(share * view.num_samples)).astype(np.float32) for share in shares]
    of_each = view.views if isinstance(view, JointView) else None
    return [image(view) if of_each is None else tuple(map(image, of_each)) for _ in range(5)]


def by_name(encoder: Any) -> dict[str, Field]:
    return {field.name: field for field in encoder.fields()}


def assert_close(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE * np.abs(value).max(), err_msg=name)


def least_cosine(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Of the vectors along the last axis that are not zero."""
    a, b = (values.reshape(-1, values.shape[-1]).astype(np.float64) for values in (one, other))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1)[lengths > 0] / lengths[lengths > 0]).min())


@contextlib.contextmanager
def instead(path: Path, content: bytes | None) -> Iterator[None]:
    """Other content in a file, or no file; the old one keeps its place on the disk, since it may be mapped."""
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        aside.replace(path)


@contextlib.contextmanager
def counted() -> Iterator[Counter[int]]:
    """How often each layer with a matrix of weights is called, word embeddings apart, which are looked up."""
    calls: Counter[int] = Counter()

    def count(module: torch.nn.Module, *_: Any) -> None:
        if any(weight.ndim > 1 for weight in module._parameters.values() if weight is not None):
            calls[id(module)] += not isinstance(module, torch.nn.Embedding)

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def test_every_kind_is_here() -> None:
    kinds = {
        f"{modality}/{encoder.kind}"
        for modality, union in ENCODERS.items()
        for encoder in get_args(get_args(union)[0])
    }
    assert {name.partition(" ")[0] for name in MAKERS} == kinds


def test_documentation_has_an_example_of_every_kind_that_is_a_configuration(tmp_path: Path) -> None:
    text = (HERE.parents[1] / "docs/teachers.md").read_text()
    kinds = set()
    for example in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        (tmp_path / "example.yaml").write_text(example)
        for modality, _, encoder in config.load(tmp_path / "example.yaml", Precompute).encoders:
            kinds |= {f"{modality}/{one.kind}" for one in (encoder, *getattr(encoder, "members", ()))}
    missing = {name.partition(" ")[0] for name in MAKERS} - kinds
    assert missing == {"text/custom", "audio/custom"}  # named alike
    assert f"```python\n{(HERE.parent / 'encoders/cifar_resnet.py').read_text()}```" in text


def test_fields_say_what_comes_out(subject: Subject) -> None:
    fields, model = by_name(subject.encoder), subject.encoder.build("cpu")
    outputs = model(inputs(subject.encoder))
    assert set(outputs) == set(fields)
    for name, field in fields.items():
        assert outputs[name].shape == (5, *field.shape), name
        stored = field.encode(outputs[name], model.constants())
        assert {n: (value.dtype.name, value.shape[1:]) for n, value in stored.items()} == field.arrays
        decoded = field.decode(stored, model.constants(), np)
        is_whole = field.encoding.kind == "int32"
        assert decoded.dtype == (np.int32 if is_whole else np.float32), name
        assert is_whole or outputs[name].dtype == np.float32, name
        np.testing.assert_allclose(
            decoded, outputs[name], rtol=0 if is_whole else 2**-11, atol=2**-24, err_msg=name
        )


def test_model_without_weights_still_has_its_fields(weighted: Subject) -> None:
    assert weighted.weights is not None
    expected = weighted.encoder.fields()
    with instead(weighted.weights, None):
        if not weighted.plans_with_weights:
            assert replace(weighted.encoder).fields() == expected
            return
        with pytest.raises(DataError):
            replace(weighted.encoder).fields()


def test_one_forward_pass_gives_whatever_is_taken(weighted: Subject) -> None:
    encoder, views = weighted.encoder, inputs(weighted.encoder, equally_long=True)
    names = list(by_name(encoder))
    for take in (names, *([name] for name in names if name != "length")):
        if isinstance(encoder, Ensemble) and take == ["patch_embeddings"]:
            continue  # is what a member gives by itself
        model = replace(encoder, take=tuple(take)).build("cpu")
        with counted() as calls:
            model(views)
        assert set(calls.values()) <= {0, 1}, take
        assert take != names or any(calls.values())


def test_field_taken_alone_is_the_same(weighted: Subject) -> None:
    encoder, views = weighted.encoder, inputs(weighted.encoder)
    outputs = encoder.build("cpu")(views)
    for name in outputs:
        if not (isinstance(encoder, Ensemble) and name == "patch_embeddings"):
            assert_close(replace(encoder, take=(name,)).build("cpu")(views), {name: outputs[name]})


def test_values_depend_neither_on_the_batch_nor_on_neighbours(subject: Subject) -> None:
    model, views = subject.encoder.build("cpu"), inputs(subject.encoder)
    together = model(views)
    alone, pair, backwards = [model([view]) for view in views], model(views[1:3]), model(views[::-1])
    assert_close({name: np.concatenate([one[name] for one in alone]) for name in together}, together)
    assert_close(pair, {name: value[1:3] for name, value in together.items()})
    assert_close(backwards, {name: value[::-1] for name, value in together.items()})


def test_recipe_is_stable_and_names_what_changes_values(subject: Subject) -> None:
    recipe = json.dumps(subject.encoder.recipe())
    assert json.dumps(replace(subject.encoder).recipe()) == recipe
    assert json.dumps(subject.other.recipe()) != recipe
    if subject.weights is not None:
        state = load_file(subject.weights)
        name = next(name for name, value in state.items() if value.ndim > 1)
        folder = subject.weights.parent
        save_file(state | {name: state[name] + 1}, folder / "changed", metadata={"format": "pt"})
        with instead(subject.weights, (folder / "changed").read_bytes()):
            assert json.dumps(replace(subject.encoder).recipe()) != recipe


def test_override_is_a_note(subject: Subject) -> None:
    own, notes = subject.encoder.notes(), subject.other.notes()
    more = [line for line in notes if line not in own]
    assert len(more) == bool(subject.note), notes
    assert not subject.note or re.match(subject.note, more[0])
    assert all("\n" not in line for line in (*own, *notes))


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_lower_precision_is_near_float32_and_can_be_undone(weighted: Subject, precision: str) -> None:
    encoder, views = weighted.encoder, inputs(weighted.encoder)
    if isinstance(encoder, Ensemble):
        low = replace(encoder, members=tuple(replace(member, precision=precision) for member in encoder.members))
    else:
        low = replace(encoder, precision=precision)
    assert precisions(low) == {precision}
    assert precisions(encoder) == set()
    assert in_float32(low) == encoder
    assert low.recipe() != encoder.recipe()
    exact, near = encoder.build("cpu")(views), low.build("cpu")(views)
    for name, field in by_name(encoder).items():
        assert near[name].dtype == exact[name].dtype, name
        if field.shape:
            assert np.isfinite(near[name]).all(), name
            assert least_cosine(near[name], exact[name]) > LEAST_COSINE[precision], name


def test_missing_and_broken_weights_are_one_line(weighted: Subject) -> None:
    assert weighted.weights is not None
    content = weighted.weights.read_bytes()
    for wrong in (None, b"", content[: len(content) // 2]):
        with instead(weighted.weights, wrong), pytest.raises(DataError) as caught:
            replace(weighted.encoder).build("cpu")
        assert "\n" not in str(caught.value)
        assert weighted.weights.parent.name in str(caught.value)


def test_geometry_fits_the_tokens(subject: Subject) -> None:
    fields, view = by_name(subject.encoder), subject.encoder.view()
    for name, field in fields.items():
        about = field.about
        if "grid" in about:
            assert prod(about["grid"]) == field.shape[0], name
            counts = [about.get(f"num_{what}_tokens", 0) for what in ("cls", "register", "distillation")]
            assert about["num_prefix_tokens"] == sum(counts), name
        if "grid" in about and not isinstance(view, AudioView):
            assert [side * count for side, count in zip(about["patch_size"], about["grid"], strict=True)] == [
                SIDE
            ] * 2
        # Of patches and frames a reader must know where they lie; word after word tells itself.
        if len(field.shape) == 2 and name != "registers" and not isinstance(view, TextView):
            assert {"grid", "hop_s"} & set(about), name
    if "registers" in fields:
        assert fields["registers"].shape[0] == fields["patch_features"].about["num_register_tokens"]


@pytest.fixture(scope="module")
def stored(subjects: Callable[[str], Subject], tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    """Scenes with captions and sounds, and a view of each, through every kind by `pipeline precompute`."""
    folder = tmp_path_factory.mktemp("stored")
    encoders: dict[str, dict[str, Any]] = {"image": {}, "text": {}, "audio": {}}
    for name in MAKERS:
        modality, _, rest = name.partition("/")
        encoders[modality][rest.replace(" ", "-")] = replace(subjects(name).encoder, batch_size=5)
    settings = Precompute(encoders=Encoders(**encoders), views=Views(num=1), gate=Gate(num_samples=0))
    (folder / "all.yaml").write_text(config.dump(settings))
    source = {"kind": "scenes", "num_train": 4, "num_val": 2, "num_test": 2}
    about = {"name": "few", "title": "Few", "homepage": "none", "licence": "none", "source": source}
    (folder / "few.yaml").write_text(json.dumps(about))
    arguments = ["precompute", "--dataset", "few.yaml", "--config", "all.yaml", "--engine", "local"]
    said = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
    assert not left.value.code, said.getvalue()
    return TargetStore.open(folder / "stores/few.zarr")


@pytest.mark.parametrize("name", MAKERS)
def test_stored_rows_are_what_the_encoder_gives(
    name: str, stored: TargetStore, subjects: Callable[[str], Subject]
) -> None:
    encoder, key = subjects(name).encoder, name.replace(" ", "-")
    modality = name.partition("/")[0]
    rows = range(0, stored.manifest.num_rows(modality), 3)
    columns = {column: stored.manifest.column(modality, column, rows) for column in ("id", "file", "text")}
    root = Path(stored.manifest.media_root)
    items = [Item(id=i, file=root / file, text=text) for i, file, text in zip(*columns.values(), strict=True)]
    model, view = encoder.build("cpu"), encoder.view()
    shown = {0: [view.load(item) for item in items]}
    if modality != "text":
        drawn = stored.load(f"{key}/view_parameters", rows, views=1)
        shown[1] = [view.replay(item, row[None])[0] for item, row in zip(items, drawn, strict=True)]
    for number, views in shown.items():
        outputs = model(views)
        for field in encoder.fields():
            exact = outputs[field.name]
            found = stored.load(f"{key}/{field.name}", rows, views=number)
            tolerance = 2**-11 * np.abs(exact) + TOLERANCE * np.abs(exact).max() + 2**-24
            assert (np.abs(found - exact) <= tolerance).all(), (field.name, number)
