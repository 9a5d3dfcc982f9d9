"""Every kind of encoder, taken away: the same embeddings from the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from contract import bundle, config
from contract.bundle import Embedder
from contract.encodings import Float16
from contract.errors import ConfigError
from contract.schema import FieldSet
from contract.views import Item
from encoders.custom import CustomText
from trainer.batch import Tokens
from trainer.export import graph
from trainer.export.portable import portable
from trainer.students.adapters import InputShape, Origin, TransformerAdapter
from trainer.students.mlp import Mlp, MlpStudent
from trainer.students.teacher_blocks import TeacherBlocks

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

Sources = dict[str, list[str]]


def student(encoder: Any, modality: str, field: str) -> Mlp:
    fields = {one.name: one for one in encoder.fields()}
    *tokens, width = fields[field].shape
    shape = InputShape(num_tokens=tokens[0] if tokens else 1, width=width)
    adapters = {modality: TransformerAdapter(num_heads=2)}
    config = MlpStudent(width=16, embedding_dim=12, num_heads=2, adapters=adapters)
    return config.build({modality: shape}, 0).eval()


def embedded(encoder: Any, modality: str, field: str, made: Mlp, sources: list[str]) -> npt.NDArray[np.float32]:
    """As a run embeds them: views, the frozen encoder, the store's float16, the student."""
    items = [Item(id=one, file=Path(one), text=one if modality == "text" else "") for one in sources]
    values = encoder.build("cpu")([encoder.view().load(item) for item in items])
    tokens = torch.from_numpy(values[field].astype(np.float16).astype(np.float32))
    length = torch.from_numpy(values["length"]) if tokens.ndim == 3 and "length" in values else None
    if tokens.ndim == 2:
        tokens = tokens[:, None]
    with torch.no_grad():
        found: npt.NDArray[np.float32] = made({modality: Tokens(tokens, length)})[f"{modality}/embedding"].numpy()
    return found


class InTorch(Embedder):
    """A bundle whose model torch runs."""

    def __init__(self, folder: Path, whole: graph.Whole) -> None:
        super().__init__(folder)
        self._whole = whole.eval()

    def run(self, modality: str, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        names = self.description["modalities"][modality]["inputs"]
        with torch.no_grad():
            found: npt.NDArray[np.float32] = self._whole(
                *(torch.from_numpy(inputs[name]) for name in names)
            ).numpy()
        return found


def exported(encoder: Any, modality: str, field: str, made: Mlp, folder: Path, *, as_onnx: bool) -> Embedder:
    folder.mkdir()
    has_length = any(one.name == "length" for one in encoder.fields())
    found = portable(encoder, field, has_length, f"{modality}/it")
    whole = graph.Whole(found.frozen, made, modality, Float16())
    if found.tokenizer is not None:
        found.tokenizer(folder / "tokenizer.json")
    about = {"model": "model.onnx", "inputs": list(found.inputs), "preprocessing": dict(found.preprocessing)}
    tree = {"format": bundle.FORMAT, "width": 12, "modalities": {modality: about}}
    (folder / bundle.DESCRIPTION).write_text(json.dumps(tree))
    if not as_onnx:
        return InTorch(folder, whole)
    graph.write(whole, found, folder / "model.onnx", f"{modality}/it")
    return Embedder(folder)


def test_the_bundle_embeds_files_as_the_run_does(
    subject: tuple[str, Any], sources: Sources, tmp_path: Path
) -> None:
    """Every field, with torch in onnxruntime's place, which takes seconds for each model."""
    modality, (encoder, fields) = subject[0], (subject[1].encoder, subject[1].fields)
    for field in fields:
        made = student(encoder, modality, field)
        require_equal(modality, encoder, field, made, sources, tmp_path / field, as_onnx=False)


def test_onnx_embeds_files_as_the_run_does(onnx_subject: tuple[str, Any], sources: Sources, tmp_path: Path) -> None:
    modality, encoder, field = onnx_subject[0], onnx_subject[1].encoder, onnx_subject[1].fields[-1]
    made = student(encoder, modality, field)
    require_equal(modality, encoder, field, made, sources, tmp_path / field, as_onnx=True)


def require_equal(
    modality: str, encoder: Any, field: str, made: Mlp, sources: Sources, folder: Path, *, as_onnx: bool
) -> None:
    embedder = exported(encoder, modality, field, made, folder, as_onnx=as_onnx)
    expected = embedded(encoder, modality, field, made, sources[modality])
    found = embedder.embed(modality, sources[modality], batch_size=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=field)
    alone = np.concatenate([embedder.embed(modality, [one]) for one in sources[modality]])
    np.testing.assert_allclose(alone, found, rtol=0, atol=1e-4, err_msg=field)


@pytest.mark.parametrize("as_onnx", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["image/data2vec_image", "text/data2vec_text", "audio/data2vec_audio"])
def test_a_student_of_the_teachers_own_blocks_is_taken_away(
    make_subject: Callable[[str], Any], sources: Sources, tmp_path: Path, name: str, as_onnx: bool
) -> None:
    subject, modality = make_subject(name), name.partition("/")[0]
    encoder, (field,) = subject.encoder, subject.fields
    filled = FieldSet(
        name="teacher",
        modality=modality,
        fields=encoder.fields(),
        batch_size=8,
        provenance=json.loads(json.dumps({"recipe": encoder.recipe(), "encoder": config.tree(encoder)})),
    )
    origin = Origin(fieldset=filled, field=field, name=f"tiny.zarr: {modality}/teacher")
    num_tokens, width = filled.field(field).shape
    shape = InputShape(num_tokens=num_tokens, width=width, origin=origin)
    adapters = {modality: TeacherBlocks(layers=(1,))}
    made = MlpStudent(width=24, embedding_dim=12, num_heads=2, adapters=adapters).build({modality: shape}, 0)
    require_equal(modality, encoder, field, made.eval(), sources, tmp_path / field, as_onnx=as_onnx)


@pytest.mark.parametrize(
    ("name", "field"),
    [("image/huggingface_image", "cls"), ("image/clip_image", "embedding"), ("text/huggingface_text", "features")],
)
def test_transformers_loads_the_frozen_encoder(
    make_subject: Callable[[str], Any], tmp_path: Path, name: str, field: str
) -> None:
    encoder = make_subject(name).encoder
    loading = portable(encoder, field, True, "it").save(tmp_path / "frozen" / "it")
    assert loading == 'transformers.AutoModel.from_pretrained("frozen/it")'
    found, own = (transformers.AutoModel.from_pretrained(path) for path in (tmp_path / "frozen/it", encoder.model))
    for key, value in own.state_dict().items():
        # AutoModel draws the pooler of a classifier at random, from either folder.
        assert key.startswith("pooler.") or torch.equal(found.state_dict()[key], value), key
    if name.startswith("text"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "frozen/it")
        assert tokenizer("the dog")["input_ids"] == [2, 6, 7, 3]


@pytest.mark.parametrize(
    ("name", "field", "has_length", "message"),
    [
        ("image/ensemble", "logits", True, "image/it: an ensemble's logits can't be exported as input"),
        ("image/data2vec_image", "targets", True, "image/it: data2vec's targets are what a student learns"),
        ("text/huggingface_text", "token_embeddings", False, "the store keeps no length beside its tokens"),
        ("audio/yamnet", "logits", True, "audio/it: YAMNet's logits can't be exported as input"),
    ],
)
def test_what_has_no_portable_form_is_named(
    make_subject: Callable[[str], Any], name: str, field: str, has_length: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        portable(make_subject(name).encoder, field, has_length, f"{name.partition('/')[0]}/it")


def test_code_of_ones_own_is_refused_before_it_runs() -> None:
    encoder = CustomText(factory="nowhere.to.be:found")
    with pytest.raises(ConfigError, match="text/mine can't be exported: its encoder is of kind custom"):
        portable(encoder, "features", True, "text/mine")
