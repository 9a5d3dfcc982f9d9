from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from contract.errors import ConfigError, DataError, MissingExtraError, StoreError
from eval import labelled, probe
from eval.__main__ import main
from eval.probe import GRID, evaluate


def quiet(line: str) -> None:
    pass


def measure(run, **options):
    source = labelled.of_run(run, None, None)
    (found,) = evaluate(
        [source], **({"train": "train", "val": "val", "test": "test", "seed": 0, "say": quiet} | options)
    )
    return found


def predicted_slowly(c: float, vectors: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Multinomial logistic regression by its definition: C times the summed cross-entropy, and half the L2 norm."""
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    x, num_classes = (vectors - mean) / deviation, labels.max() + 1

    def loss(flat):
        weights = flat.reshape(num_classes, -1)
        logits = x @ weights[:, :-1].T + weights[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gradient = np.exp(log)
        gradient[np.arange(len(x)), labels] -= 1
        slope = c * np.concatenate([gradient.T @ x, gradient.sum(axis=0)[:, None]], axis=1)
        slope[:, :-1] += weights[:, :-1]
        value = -c * log[np.arange(len(x)), labels].sum() + (weights[:, :-1] ** 2).sum() / 2
        return value, slope.ravel()

    start, precisely = np.zeros(num_classes * (x.shape[1] + 1)), {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000}
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options=precisely).x.reshape(num_classes, -1)
    return (((others - mean) / deviation) @ weights[:, :-1].T + weights[:, -1]).argmax(axis=1)


def test_accuracies_and_the_choice_are_those_of_the_definition(make_labelled):
    found = measure(make_labelled(noise=1.5))
    source = found.source
    train, val, test = (labelled.load(source, split) for split in ("train", "val", "test"))
    grid = {}
    for c in GRID:
        right = predicted_slowly(c, train.vectors.astype(float), train.labels, val.vectors) == val.labels
        grid[c] = 100.0 * right.mean()
    assert found.grid == pytest.approx(grid)
    best = max(grid.values())
    assert found.c == min(c for c in GRID if grid[c] == best)
    right = predicted_slowly(found.c, train.vectors.astype(float), train.labels, test.vectors) == test.labels
    assert found.accuracy == pytest.approx(100.0 * right.mean())
    assert found.accuracy > 50 > 25 == found.chance
    for each in found.classes:
        assert each.accuracy == pytest.approx(100.0 * right[test.labels == each.label].mean())


def test_without_labels_in_val_the_choice_is_by_cross_validation(make_labelled):
    run = make_labelled(counts={"train": 60, "test": 40}, noise=1.5)
    found = measure(run)
    assert found.chosen_on == "5 folds of train"
    assert all(0 <= accuracy <= 100 for accuracy in found.grid.values())
    assert measure(run).grid == found.grid
    assert measure(run, seed=1).grid != found.grid


def test_labels_of_val_and_test_teach_the_probe_nothing(make_labelled):
    rng = np.random.default_rng(0)
    found = measure(make_labelled(vectors=rng.standard_normal((120, 16))))
    assert found.accuracy < 60  # nothing to be learned: 25 by chance


def test_chance_names_the_most_frequent_class_of_the_training_items(make_labelled):
    found = measure(make_labelled(unlabelled=[place for place in range(60) if place % 4 != 1 and place > 20]))
    most = max(found.classes, key=lambda each: each.num_train)
    assert most.label == 1
    assert found.chance == pytest.approx(100 * most.num_test / len(found.test.ids))


def test_report_tells_of_a_choice_at_the_end_of_the_grid(make_labelled, call):
    run = make_labelled(noise=0.0)
    found = call("probe", "--run", run, script=main)
    assert "C = 0.0001 is at an end of the grid" in found.out
    report = json.loads((run / "reports/probe-labelled-image-train-test.json").read_text())["measured"][0]
    assert (report["accuracy"], report["converged"], report["num_train"]) == (100.0, True, 60)
    assert "| class | train | test | accuracy |" in (run / "reports/probe-labelled-image-train-test.md").read_text()


def test_fit_that_did_not_converge_is_told(make_labelled, call, monkeypatch):
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 1)
    run = make_labelled(noise=1.5)
    assert not json.loads(call("probe", "--run", run, "--json", script=main).out)["measured"][0]["converged"]


def test_json_is_the_report_that_is_written(make_labelled, call):
    run = make_labelled()
    printed = call("probe", "--run", run, "--json", script=main).out
    assert printed == (run / "reports/probe-labelled-image-train-test.json").read_text()


def test_splits_must_differ(make_labelled):
    with pytest.raises(ConfigError, match="--train val, --val val and --test test must be three splits"):
        measure(make_labelled(), train="val")


def test_one_class_is_nothing_to_tell_apart(make_labelled):
    with pytest.raises(DataError, match="have the label 0: there are no classes to tell apart"):
        measure(make_labelled(num_classes=1))


def test_class_with_fewer_items_than_folds_is_an_error(make_labelled):
    with pytest.raises(DataError, match="split train has 3 items with the label 0, and 5 folds need 5 of each"):
        measure(make_labelled(counts={"train": 12, "test": 8}))


def test_run_without_the_training_split_says_what_embeds_it(make_labelled):
    with pytest.raises(DataError, match=r"`trainer embed --run .* --split train` adds it"):
        measure(make_labelled(counts={"val": 8, "test": 8}))


def spoil(monkeypatch, source, row, value):
    """Have a row read as `value`, which no store takes unless its encoding says so."""
    read = source.store.read

    def spoilt(reference, rows, **options):
        found = read(reference, rows, **options)
        for values in found.values():
            values[np.asarray(rows) == row] = value
        return found

    monkeypatch.setattr(source.store, "read", spoilt)


def test_values_that_are_not_finite_are_named(make_labelled, monkeypatch):
    source = labelled.of_run(make_labelled(), None, None)
    spoil(monkeypatch, source, 7, np.nan)
    name = source.store.manifest.column("image", "id", [7])[0]
    message = f"of 1 of 60 items of split train has values that are not finite, such as that of '{name}'"
    with pytest.raises(DataError, match=message):
        labelled.load(source, "train")


def test_without_scikit_learn_one_line_says_how_to_get_it(make_labelled, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"`pip install 'precept\[probe\]'`"):
        measure(make_labelled())


def test_val_with_labels_that_cannot_be_read_is_an_error_and_no_reason_to_choose_otherwise(make_labelled):
    run = make_labelled()
    path = run / "embeddings/labelled.zarr/image/student/embedding/c/1/0"
    content = bytearray(path.read_bytes())
    content[6 * 4 * 16] ^= 1  # of row 70, 16 values wide
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"the checksum of a row is wrong \(shard 1"):
        measure(run)
