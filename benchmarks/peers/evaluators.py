"""Other tools' evaluation of embeddings, each as a program of its own, since they want packages of their own.

    python -m peers.evaluators clip_benchmark|sentence_transformers FOLDER

Reads FOLDER/<set>.npz (images float32 [i, d] and captions float32 [c, d] of unit length, owners int64 [c]) of each
set of embeddings, and writes FOLDER/<set>.<tool>.npz: for each direction and K whether a query has a hit, bool [q].
Then, for every set that is named on stdin, it answers with a line of JSON: how many seconds the evaluation took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

KS = (1, 5, 10)
# CLIP_benchmark's own default for its data loader.
BATCH = 64

Hits = dict[str, np.ndarray]


class Embeddings:
    """The embeddings of a set, as a model that knows its inputs by number."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            self.images, self.captions = (torch.from_numpy(arrays[name]) for name in ("images", "captions"))
            self.owners = torch.from_numpy(arrays["owners"])
        self.image_ids, self.caption_ids = (
            [f"{n:06}" for n in range(len(vectors))] for vectors in (self.images, self.captions)
        )
        self.by_id = {"image": self.images, "caption": self.captions}

    # CLIP_benchmark
    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        """Float32 [n, d] of images by number."""
        return self.images[batch]

    def encode_text(self, batch: torch.Tensor) -> torch.Tensor:
        """Float32 [n, d] of captions by number."""
        return self.captions[batch]

    # sentence-transformers
    def encode_query(self, texts: list[str], **_: object) -> torch.Tensor:
        """Float32 [n, d] of items by name, such as "image 12"."""
        return self._encode(texts)

    encode_document = encode_query

    def _encode(self, texts: list[str]) -> torch.Tensor:
        vectors = self.by_id[texts[0].partition(" ")[0]]
        return vectors[torch.tensor([int(text.partition(" ")[2]) for text in texts])]


def clip_benchmark(embeddings: Embeddings) -> tuple[Callable[[], object], Callable[[], Hits]]:
    """Its zero-shot retrieval, and the hits behind it."""
    from clip_benchmark.metrics import zeroshot_retrieval as peer

    captions: list[list[str]] = [[] for _ in embeddings.images]
    for caption, owner in enumerate(embeddings.owners.tolist()):
        captions[owner].append(str(caption))
    images = torch.arange(len(embeddings.images))
    loader = [(images[at : at + BATCH], captions[at : at + BATCH]) for at in range(0, len(images), BATCH)]

    def tokenizer(texts: list[str]) -> torch.Tensor:
        return torch.tensor([int(text) for text in texts])

    def evaluate() -> object:
        return peer.evaluate(embeddings, loader, tokenizer, "cpu", amp=False, recall_k_list=list(KS))

    def hits() -> Hits:
        # As `evaluate` makes them, before it takes the mean.
        texts, pictures = (
            torch.nn.functional.normalize(x, dim=-1) for x in (embeddings.captions, embeddings.images)
        )
        scores = texts @ pictures.t()
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[torch.arange(len(scores)), embeddings.owners] = True
        return {
            f"{name}@{k}": (peer.batchify(peer.recall_at_k, x, y, BATCH, "cpu", k=k) > 0).numpy()
            for name, x, y in (("text-to-image", scores, positive), ("image-to-text", scores.T, positive.T))
            for k in KS
        }

    return evaluate, hits


def sentence_transformers(embeddings: Embeddings) -> tuple[Callable[[], object], Callable[[], Hits]]:
    """Its information retrieval, both ways, with no figure beyond the ten best."""
    from sentence_transformers.util import cos_sim

    try:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    except ImportError:  # before version 5.3
        from sentence_transformers.evaluation import InformationRetrievalEvaluator

    class Evaluator(InformationRetrievalEvaluator):
        def compute_metrics(self, queries_result_list: list[Any]) -> Any:
            self.results = queries_result_list
            return super().compute_metrics(queries_result_list)

    images = {name: f"image {int(name)}" for name in embeddings.image_ids}
    captions = {name: f"caption {int(name)}" for name in embeddings.caption_ids}
    of_caption = {c: {embeddings.image_ids[o]} for c, o in zip(captions, embeddings.owners.tolist(), strict=True)}
    of_image: dict[str, set[str]] = {}
    for caption, owners in of_caption.items():
        of_image.setdefault(next(iter(owners)), set()).add(caption)
    asked: Mapping[str, Any] = {
        "accuracy_at_k": list(KS),
        "precision_recall_at_k": [max(KS)],
        "mrr_at_k": [max(KS)],
        "ndcg_at_k": [max(KS)],
        "map_at_k": [max(KS)],
        "score_functions": {"cosine": cos_sim},
    }
    both = {
        "text-to-image": Evaluator(captions, images, of_caption, **asked),
        "image-to-text": Evaluator(images, captions, of_image, **asked),
    }

    def evaluate() -> object:
        return [evaluator.compute_all_metrics(embeddings) for evaluator in both.values()]

    def hits() -> Hits:
        evaluate()
        return {
            f"{name}@{k}": np.array(
                [
                    any(hit["corpus_id"] in one.relevant_docs[query] for hit in found[:k])
                    for query, found in zip(one.queries_ids, one.results, strict=True)
                ]
            )
            for name, one in both.items()
            for k in KS
        }

    return evaluate, hits


TOOLS = {"clip_benchmark": clip_benchmark, "sentence_transformers": sentence_transformers}


def main() -> None:
    """Answer."""
    tool, folder = sys.argv[1], Path(sys.argv[2])
    evaluations = {}
    for file in sorted(folder.glob("*.npz")):
        if "." not in file.stem:
            evaluations[file.stem], hits = TOOLS[tool](Embeddings(file))
            np.savez(folder / f"{file.stem}.{tool}.npz", **hits())
    answer({"version": version(tool.replace("_", "-")), "torch": torch.__version__})
    for line in sys.stdin:
        started = time.perf_counter()
        evaluations[line.strip()]()
        answer({"seconds": time.perf_counter() - started})


def answer(tree: object) -> None:
    print(json.dumps(tree), flush=True)


if __name__ == "__main__":
    main()
