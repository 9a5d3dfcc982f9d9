"""The teacher gate: before the long run, is the teacher as good as it should be?

Weights that were never loaded, classes in another order or captions of other images bring a figure down to chance
that a few hundred samples give. Where the items have labels of the teacher's classes, it is top-1 accuracy. Where
images have captions, it is retrieval: of a dual encoder, by the cosine of its two embeddings; of any other, by a
linear map from the teacher's features to the mean word embedding, fitted on two thirds of the sample, which ranks
the images of the last third for their captions. What costs a teacher some points, such as a wrong normalisation,
shows only to those who know what the figure should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import ranking
from contract.errors import DataError
from contract.manifest import Rows
from contract.schema import FieldSet
from contract.store import TargetStore
from pipeline.plan import Task
from pipeline.settings import Gate
from pipeline.worker import Mask, pooled, spread

Array = npt.NDArray[Any]
Figure = dict[str, Any]
# `ask(task, "vectors", rows, field)` is `ShardWorker.vectors`, wherever that worker lives.
Ask = Callable[..., Any]

FEWEST = 60
# Against overfitting a few hundred samples: the ridge, relative to the mean eigenvalue of the kernel.
RIDGE = 0.1


def pass_through(
    store: TargetStore, tasks: Sequence[Task], gate: Gate, ask: Ask, say: Callable[[str], None]
) -> None:
    """Score every teacher that has not been scored yet; `DataError` for one that is no better than chance.

    Not scored are teachers of which fewer than `FEWEST` samples, or samples of a single class, would say nothing,
    and those whose values are not finite, which the store will refuse with counts.
    """
    for task in tasks if gate.num_samples >= FEWEST else ():
        key = task.fieldset.key
        if store.holds(task.fieldset) and store.gate(key) is not None:
            continue
        figure = _accuracy(store, task, gate, ask) or _retrieval(store, task, tasks, gate, ask)
        if figure is None:
            continue
        value, chance, num_samples = figure["value"], figure["chance"], figure["num_samples"]
        line = f"gate: {key}: {figure['what']} {value:.1%} on {num_samples} samples (chance {chance:.1%})"
        if value <= chance + 3 * np.sqrt(chance * (1 - chance) / num_samples):
            raise DataError(
                f"{line}: no better than guessing; look at the weights, the preprocessing, and which class or "
                "caption belongs to which item; --set gate.num_samples=0 goes on all the same"
            )
        store.write_gate(task.fieldset, figure)
        say(line)


def _accuracy(store: TargetStore, task: Task, gate: Gate, ask: Ask) -> Figure | None:
    manifest, fieldset = store.manifest, task.fieldset
    shapes = {field.name: field.shape for field in fieldset.fields}
    if not manifest.num_classes or shapes.get("logits") != (manifest.num_classes,):
        return None
    labels = np.asarray(manifest.column(fieldset.modality, "label"))
    rows = spread(np.flatnonzero(labels >= 0), gate.num_samples)
    if len(rows) < FEWEST:
        return None
    good, logits = ask(task, "vectors", rows, "logits")
    if len(logits) < FEWEST or not np.isfinite(logits).all():
        return None
    answers, found = logits.argmax(axis=1), labels[rows[good]]
    if (found == found[0]).all():
        return None
    # The same answers given to other samples: a teacher that always says the commonest class is at chance.
    shares = [np.bincount(classes, minlength=manifest.num_classes) / len(found) for classes in (answers, found)]
    return _figure("top-1 accuracy", answers == found, float(shares[0] @ shares[1]))


def _retrieval(store: TargetStore, task: Task, tasks: Sequence[Task], gate: Gate, ask: Ask) -> Figure | None:
    pairs = store.manifest.positives("image", "text")
    images, firsts = np.unique(pairs[:, 0], return_index=True)
    chosen = spread(np.arange(len(images)), gate.num_samples)
    name, space = _vector_field(task.fieldset), _space(task.fieldset)
    if task.fieldset.modality != "image" or name is None or len(chosen) < FEWEST:
        return None
    words = _text_vectors(store, tasks, pairs[firsts[chosen], 1], ask, space)
    if words is None and space is not None:  # its own text tower is not among the encoders
        space, words = None, _text_vectors(store, tasks, pairs[firsts[chosen], 1], ask, None)
    if words is None:
        return None
    # The teacher comes after the words: its model is loaded when the run begins with it.
    good_images, features = ask(task, "vectors", images[chosen], name)
    good_texts, embeddings = words
    both = good_images & good_texts
    x = features[both[good_images]].astype(np.float64)
    y = embeddings[both[good_texts]].astype(np.float64)
    if len(x) < FEWEST or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    return _linear_retrieval(x, y) if space is None else _dual_retrieval(x, y)


def _text_vectors(
    store: TargetStore, tasks: Sequence[Task], rows: Rows, ask: Ask, space: str | None
) -> tuple[Mask, Array] | None:
    """Bool [n], which captions there are vectors of, and these, float [m, D]: stored ones, or made for this.

    Of the encoder whose embeddings lie in `space`, or of any.
    """
    for key, fieldset in store.fieldsets.items():
        name = _vector_field(fieldset)
        is_it = fieldset.modality == "text" and (space is None or _space(fieldset) == space)
        if is_it and name is not None and store.complete(key):
            good = store.usable("text", [key])[rows]
            has_length = any(field.name == "length" for field in fieldset.fields)
            length = store.load(f"{key}/length", rows[good]) if has_length else None
            return good, pooled(store.load(f"{key}/{name}", rows[good]), length)
    for task in tasks:
        name = _vector_field(task.fieldset)
        is_it = task.fieldset.modality == "text" and (space is None or _space(task.fieldset) == space)
        if is_it and name is not None:
            made: tuple[Mask, Array] = ask(task, "vectors", rows, name)
            return made
    return None


def _vector_field(fieldset: FieldSet) -> str | None:
    """The field that is a vector of each item, or can be pooled to one."""
    names = [f.name for f in fieldset.fields if f.encoding.kind != "int32" and len(f.shape) in (1, 2)]
    shared = [f.name for f in fieldset.fields if "space" in f.about]
    return next((name for name in (*shared, "features", *names) if name in names), None)


def _space(fieldset: FieldSet) -> str | None:
    """The space that a dual encoder's embeddings share."""
    return next((f.about["space"] for f in fieldset.fields if "space" in f.about), None)


def _dual_retrieval(images: Array, texts: Array) -> Figure:
    """Recall of images for captions by cosine: float64 [n, D] both, whose rows belong together."""
    x, y = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (images, texts))
    return _recall(x, y, "by cosine,")


def _linear_retrieval(images: Array, texts: Array) -> Figure:
    """Recall of captions among the held-out third of float64 [n, Dx] and [n, Dy], whose rows belong together."""
    held_out = np.arange(len(images)) % 3 == 2
    x, y = _standardised(images, ~held_out), _standardised(texts, ~held_out)
    kernel = x[~held_out] @ x[~held_out].T
    ridge = RIDGE * (np.trace(kernel) / len(kernel) or 1.0)  # without it, equal features would make no equation
    weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), y[~held_out])
    predicted = x[held_out] @ x[~held_out].T @ weights
    return _recall(predicted, y[held_out], "by a linear map,")


def _recall(images: Array, texts: Array, how: str) -> Figure:
    truth = np.repeat(np.arange(len(texts))[:, None], 2, axis=1)
    ranks = ranking.rank(texts, images, truth, truth[:, 0].astype(str))
    k = min(10, len(truth) // 10)
    return _figure(f"text-to-image R@{k} among {len(truth)}, {how}", ranks.ranks <= k, k / len(truth))


def _standardised(rows: Array, fitted: Array) -> Array:
    mean, deviation = rows[fitted].mean(axis=0), rows[fitted].std(axis=0)
    result: Array = (rows - mean) / np.where(deviation > 0, deviation, 1)
    return result


def _figure(what: str, right: Array, chance: float) -> Figure:
    return {"what": what, "value": float(right.mean()), "chance": chance, "num_samples": len(right)}
