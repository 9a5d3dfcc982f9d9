"""One logical field <-> the arrays that are stored for it.

An encoding says which arrays a row of the field becomes, and turns values into them and back. What is the same for
every row (scales, an embedding table, a patch embedding's weights) are its constants, kept once in the store.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contract.encodings.encoding import NotEncodableError
from contract.encodings.floats import BFloat16, Float8, Float16, Float32, Int32
from contract.encodings.int8 import Int8
from contract.encodings.lookup import Lookup
from contract.encodings.pixels import Pixels
from contract.encodings.topk import TopK

__all__ = [
    "BFloat16",
    "Encoding",
    "Float8",
    "Float16",
    "Float32",
    "FloatEncoding",
    "Int8",
    "Int32",
    "LogitsEncoding",
    "Lookup",
    "NotEncodableError",
    "PatchEncoding",
    "Pixels",
    "TokenEncoding",
    "TopK",
]

# A new encoding is a file beside this one and one name in the lines below: all of them, and what a configuration
# may choose for vectors, for a classifier's logits, for patch embeddings and for token embeddings.
Encoding = Annotated[
    Float16 | Float32 | BFloat16 | Float8 | Int8 | Int32 | TopK | Lookup | Pixels, Field(discriminator="kind")
]
FloatEncoding = Annotated[Float16 | Float32 | BFloat16 | Float8 | Int8, Field(discriminator="kind")]
LogitsEncoding = Annotated[Float16 | Float32 | BFloat16 | Float8 | Int8 | TopK, Field(discriminator="kind")]
PatchEncoding = Annotated[Float16 | Float32 | BFloat16 | Float8 | Int8 | Pixels, Field(discriminator="kind")]
TokenEncoding = Annotated[Float16 | Float32 | BFloat16 | Float8 | Int8 | Lookup, Field(discriminator="kind")]
