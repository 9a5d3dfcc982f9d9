"""Students: each a configuration, its module, and one line here.

A student's `forward(inputs)` takes {modality: Tokens} and returns every output by name: "image/embedding",
"image/logits" and so on. Widths, numbers of tokens and classes come from the store, never from a recipe.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.students.mlp import MlpStudent
from trainer.students.transformer import TransformerStudent

Student = Annotated[MlpStudent | TransformerStudent, Field(discriminator="kind")]
