"""Captions that a run's decoder generates of a split's items, and how near they are to those that people wrote.

RUN/captions/<dataset>-<split>.jsonl    {"id", "modality", "caption", "references"} for each item, one a line
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from contract.errors import DataError, MissingExtraError, RunError
from contract.files import replace_file
from contract.manifest import Rows
from contract.store import TargetStore, writing
from trainer.captions import TEXT, captions
from trainer.device import Device
from trainer.embed import BATCH_SIZE
from trainer.objectives.beam import generate
from trainer.objectives.caption import CaptionLoss
from trainer.resolve import usable_pairs
from trainer.runs import Run
from trainer.state import State
from trainer.streams import Input


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """One item's caption, and its references."""

    id: str
    modality: str
    caption: str
    references: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Of the captions in a file, those of one modality: BLEU-4 and CIDEr, both times 100."""

    path: Path
    modality: str
    num_items: int
    bleu: float
    cider: float

    def __str__(self) -> str:
        return f"{self.path}: {self.num_items:,} {self.modality}: BLEU-4 {self.bleu:.1f}, CIDEr {self.cider:.1f}"


def write(run: Run, splits: Sequence[str], beam: int) -> Iterator[CaptionScores]:
    """Write the captions of these splits of every dataset of a finished run, and score them."""
    require_scores()
    if not run.record["finished"]:
        raise RunError(f"{run.path} is not finished; `trainer run --run {run.path} --resume` finishes it")
    if not any(config.kind == "caption" for config in run.recipe.objectives.values()):
        raise RunError(
            f"{run.path}: recipe {run.recipe.name} trains no decoder; give it an objective of kind caption"
        )
    with writing(run.path):
        state = State(run.recipe, run.streams, Device.choose(run.recipe.precision), is_new=False)
        state.restore_student(run.best)
        state.student.eval()
        state.objectives.eval()
        for store, inputs in run.streams.stores:
            for split in splits:
                found = list(_captioned(run, state, store, inputs, split, beam))
                if not found:
                    raise DataError(
                        f"{store.path}: nothing in split {split!r} has captions in {run.recipe.languages}; its "
                        f"splits: {', '.join(store.manifest.splits(TEXT)) or 'none'}; see --split"
                    )
                path = run.path / "captions" / f"{store.manifest.dataset}-{split}.jsonl"
                path.parent.mkdir(exist_ok=True)
                lines = "".join(json.dumps(vars(item), ensure_ascii=False) + "\n" for item in found)
                replace_file(path, lines.encode())
                yield from _scored(path, found)


def require_scores() -> None:
    """Raise `MissingExtraError` if the packages that score captions are not installed."""
    missing = [name for name in ("pycocoevalcap", "sacrebleu") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'captions are scored by {" and ".join(missing)}: install "precept[captions]"')


def bleu(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 in percent, in lower case (Papineni et al. 2002), as sacrebleu computes it."""
    from sacrebleu.metrics import BLEU

    most = max(len(of_item) for of_item in references)
    streams = [[of_item[k] if k < len(of_item) else None for of_item in references] for k in range(most)]
    return float(BLEU(lowercase=True, tokenize="13a").corpus_score(list(found), streams).score)


def cider(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D times 100 (Vedantam et al. 2015, arXiv 1411.5726), as coco-caption computes it.

    Words are in lower case and without punctuation, as there; its tokenizer needs Java, sacrebleu's cuts the same.
    """
    from pycocoevalcap.cider.cider import Cider

    score, _ = Cider().compute_score(
        {row: [_words(text) for text in of_item] for row, of_item in enumerate(references)},
        {row: [_words(text)] for row, text in enumerate(found)},
    )
    return 100 * float(score)


def _words(text: str) -> str:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return " ".join(word for word in Tokenizer13a()(text.lower()).split() if any(map(str.isalnum, word)))


def _scored(path: Path, found: Sequence[Captioned]) -> Iterator[CaptionScores]:
    for modality in sorted({item.modality for item in found}):
        items = [item for item in found if item.modality == modality]
        texts, references = [item.caption for item in items], [item.references for item in items]
        yield CaptionScores(
            path=path,
            modality=modality,
            num_items=len(items),
            bleu=bleu(texts, references),
            cider=cider(texts, references),
        )


def _captioned(
    run: Run, state: State, store: TargetStore, inputs: Mapping[str, Input], split: str, beam: int
) -> Iterator[Captioned]:
    """The captions of each modality's items that the decoder was trained on."""
    objective = next(one for one in state.objectives if isinstance(one, CaptionLoss))
    words = run.streams.words
    assert words is not None  # the objective reads them
    for pair, beside in _sources(run, store):
        modality = next(one for one in pair if one != TEXT)
        read = objective.read(dict.fromkeys([modality, *beside]))
        if modality not in read:
            continue
        keys = [input_.key for input_ in inputs.values()]
        pairs = usable_pairs(store, (modality, TEXT), keys, split, run.recipe.languages)
        rows = {modality: np.unique(pairs[:, 0])}
        for other in read[1:]:
            others = usable_pairs(store, (modality, other), keys, split, run.recipe.languages)
            rows[modality] = rows[modality][np.isin(rows[modality], others[:, 0])]
            rows[other] = others[np.searchsorted(others[:, 0], rows[modality]), 1]
        ids = store.manifest.column(modality, "id", rows[modality])
        found = _generated(state, objective, store, inputs, rows, beam)
        for id_, row, caption in zip(ids, rows[modality], found, strict=True):
            references = captions(store, pairs[pairs[:, 0] == row, 1])
            yield Captioned(id=id_, modality=modality, caption=words.text(caption), references=references)


def _sources(run: Run, store: TargetStore) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The pairs with captions of the run's streams of the store, and what stands beside each."""
    streams = [stream for stream in run.streams.streams if stream.store is store and TEXT in stream.pair]
    return list(dict.fromkeys((stream.pair, tuple(stream.beside)) for stream in streams if len(stream.pair) == 2))


@torch.no_grad()
def _generated(
    state: State,
    objective: CaptionLoss,
    store: TargetStore,
    inputs: Mapping[str, Input],
    rows: Mapping[str, Rows],
    beam: int,
) -> Iterator[list[int]]:
    """The ids of a caption for each item, of which row i of each modality is the i-th's."""
    num_items = len(next(iter(rows.values())))
    for start in tqdm(range(0, num_items, BATCH_SIZE), f"caption {' and '.join(rows)}", file=sys.stderr):
        part = slice(start, start + BATCH_SIZE)
        tokens = {m: inputs[m].load(store, of_modality[part], state.device.name) for m, of_modality in rows.items()}
        with state.device.autocast():
            named = state.student(tokens)
            before = objective.before({m: named[f"{m}/features"] for m in rows})
            yield from generate(objective.decoder, before, objective.categories.banned, beam)
