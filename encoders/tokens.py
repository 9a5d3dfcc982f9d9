"""Tokens of captions, as text encoders of transformers share them: ids, zeros after the end, the table of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contract.encodings.lookup import PADDING
from contract.errors import ConfigError, DataError
from encoders import weights

if TYPE_CHECKING:
    import torch

# What is pooled by BERT's second pretraining task: no field is computed with it, and many checkpoints lack it.
UNUSED = (r"pooler\.",)
# Models that count positions from behind the padding token's id, so that they have that many less.
COUNT_FROM_PADDING = ("camembert", "data2vec-text", "mpnet", "xlm-roberta", "xlm-roberta-xl")


def load_tokenizer(folder: Path, model: str) -> Any:
    """The tokenizer of a transformers model, whose first tokens of a row are the real ones."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    except Exception as error:  # of a broken file the library raises many kinds
        raise DataError(f"text encoder {model}: its tokenizer can't be loaded: {weights.reason(error)}") from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def strings(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[str]]:
    """The tokens of each text, special ones included, in the order of the rows that a model makes of them."""
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [tokenizer.convert_ids_to_tokens(row) for row in ids]


def text(tokenizer: Any, strings: Sequence[str]) -> str:
    """What is written of tokens, without special ones."""
    ids = tokenizer.convert_tokens_to_ids(list(strings))
    written: str = tokenizer.decode(ids, skip_special_tokens=True)
    return written.strip()


def require_positions(config: Any, max_length: int) -> None:
    """Refuse more tokens than a model has position embeddings for, of which it would only tell by crashing."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or config.model_type.startswith("deberta"):  # DeBERTa's are relative, without an end
        return
    if config.model_type.startswith("roberta") or config.model_type in COUNT_FROM_PADDING:
        positions -= config.pad_token_id + 1
    if max_length > positions:
        raise ConfigError(f"max_length: {max_length} tokens, and the model has positions for {positions}")


def padded(rows: torch.Tensor, mask: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Rows [n, t, D] of t <= num_rows, real where mask [n, t] is 1 -> float32 [n, num_rows, D], else 0."""
    import torch

    real = torch.where(mask.bool().unsqueeze(-1), rows.float(), 0.0)
    return torch.nn.functional.pad(real, (0, 0, 0, num_rows - rows.shape[1]))


def mean(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean, float32 [n, D], of the rows [n, t, D] that mask [n, t] says are real; at least one is."""
    weight = mask.unsqueeze(-1).float()
    return (rows.float() * weight).sum(dim=1) / weight.sum(dim=1)


def largest(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The largest value of each channel, float32 [n, D], over the rows [n, t, D] that mask [n, t] says are real."""
    return rows.float().masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def lookup_ids(ids: torch.Tensor, mask: torch.Tensor, num_tokens: int) -> npt.NDArray[np.int32]:
    """What the encoding `lookup` stores of ids [n, t]: int32 [n, num_tokens], -1 where mask [n, t] has ended."""
    stored = np.full((len(ids), num_tokens), PADDING, np.int32)
    stored[:, : ids.shape[1]] = ids.masked_fill(mask == 0, PADDING).cpu().numpy()
    return stored


def word_table(embedding: Any) -> npt.NDArray[np.float32]:
    """The rows float32 [V, D] of a word-embedding module, as the model itself looks them up."""
    import torch

    with torch.inference_mode():
        rows = embedding(torch.arange(embedding.num_embeddings, device=embedding.weight.device))
    table: npt.NDArray[np.float32] = rows.float().cpu().numpy()
    return table
