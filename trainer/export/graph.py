"""The model of one modality: frozen encoder, the store's rounding, the student; as ONNX, and as int8."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contract.encodings import BFloat16, Encoding, Float16
from contract.errors import MissingExtraError, RunError
from encoders import weights
from trainer.batch import Tokens
from trainer.export.portable import BATCH, Portable

# The largest difference of any value of an embedding between onnxruntime and torch.
TOLERANCE = 1e-4
# Items in the batch that is traced, and in the one that is compared.
NUM_TRACED, NUM_COMPARED = 3, 5
# What the exporter tells of a node: the modules that it lies in, and the operation it was.
MADE_BY, LINEAR = "pkg.torch.onnx.class_hierarchy", "aten.linear"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Whole(nn.Module):
    """Inputs of one modality -> embeddings float32 [B, D], unit length."""

    def __init__(self, frozen: nn.Module, student: nn.Module, modality: str, encoding: Encoding) -> None:
        super().__init__()
        self.frozen, self.student = frozen, student
        self._modality = modality
        # The student has learned from what the store keeps of a value; other encodings are no casts.
        self._stored = {Float16: torch.float16, BFloat16: torch.bfloat16}.get(type(encoding))

    def forward(self, *inputs: Tensor) -> Tensor:
        """The frozen encoder's inputs -> embeddings."""
        values, length = self.frozen(*inputs)
        if self._stored is not None:
            values = values.to(self._stored).float()
        if values.ndim == 2:
            values = values[:, None]
        embedding: Tensor = self.student({self._modality: Tokens(values, length)})[f"{self._modality}/embedding"]
        return embedding


def require_packages() -> None:
    """Refuse to begin without what writes and runs ONNX."""
    import importlib.util

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} not installed: `pip install {' '.join(missing)}`, or Precept with its extra "
            "`export`"
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model: its largest difference from torch, and the names of the products with a linear layer's weights."""

    difference: float
    linear: tuple[str, ...]


def write(whole: Whole, portable: Portable, path: Path, name: str) -> Written:
    """Write the model as ONNX; `RunError` if its embeddings lie more than TOLERANCE from torch's.

    `name` is the FieldSet's, for errors.
    """
    whole.eval()
    batch = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {0: batch}
        | {axis: torch.export.Dim.DYNAMIC(min=least, max=most) for axis, (_, least, most) in axes.items()}
        for axes in (portable.axes.get(one, {}) for one in portable.inputs)
    )
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                whole,
                portable.example(NUM_TRACED),
                dynamo=True,
                dynamic_shapes={"inputs": shapes},
                input_names=list(portable.inputs),
                output_names=["embedding"],
                verbose=False,
            )
            _name_axes(program.model, portable)
            linear = _without_traces(program.model)
            program.save(path)
    except Exception as error:  # whatever the exporter meets in a model, it is one that it can't write
        raise RunError(f"{name}: its model can't be written as ONNX: {weights.reason(error)}") from error
    return Written(difference=_compared(whole, portable, path, name), linear=linear)


def quantize(path: Path, out: Path, linear: Sequence[str]) -> None:
    """Write the model with the weights of its linear layers as int8; a spectrogram's filters stay as they are."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            out,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=list(linear),
        )


def _compared(whole: Whole, portable: Portable, path: Path, name: str) -> float:
    import onnxruntime

    inputs = portable.example(NUM_COMPARED)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(
        ["embedding"], {one: tensor.numpy() for one, tensor in zip(portable.inputs, inputs, strict=True)}
    )
    with torch.no_grad():
        difference = float((whole(*inputs) - torch.from_numpy(found)).abs().max())
    if not difference <= TOLERANCE:
        raise RunError(f"{name}: onnxruntime's embeddings lie {difference:.1e} from torch's, more than {TOLERANCE}")
    return difference


def _name_axes(model: Any, portable: Portable) -> None:
    """What varies, in words: a reader of the model sees [batch, tokens] and not [s0, s1]."""
    import onnx_ir
    import onnx_ir.passes.common

    for value in model.graph.inputs:
        names = {0: BATCH} | {axis: name for axis, (name, _, _) in portable.axes.get(value.name, {}).items()}
        shape = [names.get(axis, size) for axis, size in enumerate(value.shape)]
        value.shape = onnx_ir.Shape(shape)
    for value in model.graph.outputs:
        value.shape = onnx_ir.Shape([BATCH, *value.shape[1:]])
    # A value inside of the model may be called as an input or the output is.
    onnx_ir.passes.common.NameFixPass()(model)


def _without_traces(model: Any) -> tuple[str, ...]:
    """The names of the products of linear layers; forgets which line of code, on whose disk, made each node."""
    linear = []
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and LINEAR in node.metadata_props.get(MADE_BY, ""):
            linear.append(node.name)
        node.metadata_props.clear()
    return tuple(linear)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters from telling what they do."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
