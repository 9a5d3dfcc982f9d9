"""A linear probe: multinomial logistic regression on frozen embeddings.

    standardise with the training items' mean and deviation -> logistic regression, L2, strength 1 / C
    C: the best of a grid on split val, or by cross-validation over the training items where val has no labels

What is reported was fitted to the training items alone, with that C.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from contract.errors import ConfigError, DataError, MissingExtraError
from eval import labelled
from eval.labelled import Labelled, Source

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

GRID = tuple(10.0**exponent for exponent in range(-4, 3))
NUM_FOLDS = 5
# Of L-BFGS, for each strength. An embedding with a few strong directions is slow to fit: each fit begins where that
# of the next stronger regularisation ended, and the report tells of one that did not converge.
MAX_ITERATIONS = 500
# On classes drawn around 10 and 20 means, scikit-learn's own 1e-4 left up to 5 of 2,000 predictions short of the
# optimum's, this one none.
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """One class: its label, its items in the two splits, and the share of the test items that are right."""

    label: int
    num_train: int
    num_test: int
    accuracy: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One source's probe; accuracies in percent.

    `chance` is the accuracy of always naming the training items' most frequent class; `grid` has the accuracy that
    each C was chosen by, over `chosen_on`.
    """

    source: Source
    train: Labelled
    test: Labelled
    chosen_on: str
    grid: dict[float, float]
    c: float
    seed: int
    has_converged: bool
    accuracy: float
    chance: float
    classes: tuple[ClassAccuracy, ...]

    @property
    def balanced(self) -> float:
        """The mean of the classes' accuracies."""
        return float(np.mean([each.accuracy for each in self.classes]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """One strength: what it predicts of each of the other splits, int64 [n]."""

    c: float
    has_converged: bool
    predicted: tuple[Rows, ...]


def evaluate(
    sources: Sequence[Source], *, train: str, val: str, test: str, seed: int, say: Callable[[str], None]
) -> list[Measured]:
    """Fit and measure a probe of each source."""
    if len({train, val, test}) < 3:
        raise ConfigError(f"--train {train}, --val {val} and --test {test} must be three splits")
    _sklearn()
    return [_measure(source, train, val, test, seed, say) for source in sources]


def _measure(source: Source, train: str, val: str, test: str, seed: int, say: Callable[[str], None]) -> Measured:
    fitted, tested = labelled.load(source, train), labelled.load(source, test)
    labelled.require_classes(source, fitted)
    held_out = _held_out(source, val)
    chosen_on = f"{NUM_FOLDS} folds of {train}" if held_out is None else val
    say(f"{source.name}: C is chosen on {chosen_on}")
    fits = _path(fitted, (tested,) if held_out is None else (tested, held_out), "probe")
    if held_out is None:
        grid = _cross_validated(source, fitted, seed)
    else:
        grid = {fit.c: _percent(fit.predicted[1] == held_out.labels) for fit in fits}
    best = max(fits, key=lambda fit: (grid[fit.c], -fit.c))  # of equal ones the strongest regularisation
    right = best.predicted[0] == tested.labels
    labels, counts = np.unique(fitted.labels, return_counts=True)
    return Measured(
        source=source,
        train=fitted,
        test=tested,
        chosen_on=chosen_on,
        grid=grid,
        c=best.c,
        seed=seed,
        has_converged=best.has_converged,
        accuracy=_percent(right),
        chance=_percent(tested.labels == labels[np.argmax(counts)]),
        classes=tuple(
            ClassAccuracy(
                label=int(label),
                num_train=int((fitted.labels == label).sum()),
                num_test=int((tested.labels == label).sum()),
                accuracy=_percent(right[tested.labels == label]),
            )
            for label in np.unique(tested.labels)
        ),
    )


def _held_out(source: Source, val: str) -> Labelled | None:
    """The labelled items of split `val`; None where there are none."""
    return labelled.load(source, val) if labelled.has_labels(source, val) else None


def _cross_validated(source: Source, train: Labelled, seed: int) -> dict[float, float]:
    """C -> accuracy in percent over folds of the training items."""
    num_right = dict.fromkeys(GRID, 0)
    for number, (inside, outside) in enumerate(_folds(source, train, seed)):
        fold, others = _only(train, inside), _only(train, outside)
        for fit in _path(fold, (others,), f"fold {number + 1} of {NUM_FOLDS}"):
            num_right[fit.c] += int((fit.predicted[0] == others.labels).sum())
    return {c: 100.0 * count / len(train.ids) for c, count in num_right.items()}


def _only(items: Labelled, rows: Rows) -> Labelled:
    return replace(items, ids=items.ids[rows], labels=items.labels[rows], vectors=items.vectors[rows])


def _folds(source: Source, train: Labelled, seed: int) -> list[tuple[Rows, Rows]]:
    """Stratified folds, (rows inside, rows outside) each."""
    from sklearn.model_selection import StratifiedKFold

    labels, counts = np.unique(train.labels, return_counts=True)
    if counts.min() < NUM_FOLDS:
        raise DataError(
            f"{source.store.path}: split {train.split} has {counts.min()} items with the label "
            f"{labels[np.argmin(counts)]}, and {NUM_FOLDS} folds need {NUM_FOLDS} of each; C needs "
            "no folds where split val has labels"
        )
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(train.vectors, train.labels))


def _path(train: Labelled, others: Sequence[Labelled], what: str) -> list[_Fit]:
    """Fit the training items with every strength, from the strongest on, and predict the others with each."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    # In float64: in float32 the loss stops falling some iterations early.
    inputs = scaler.fit_transform(train.vectors.astype(np.float64))
    asked = [scaler.transform(items.vectors.astype(np.float64)) for items in others]
    model = LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
    fits = []
    for c in tqdm(GRID, desc=what, unit="fit", leave=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told in the report, of the fit that counts
            model.set_params(C=c).fit(inputs, train.labels)
        has_converged = bool(model.n_iter_.max() < MAX_ITERATIONS)
        fits.append(
            _Fit(c=c, has_converged=has_converged, predicted=tuple(model.predict(vectors) for vectors in asked))
        )
    return fits


def _percent(right: Mask) -> float:
    return 100.0 * float(right.mean())


def _sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"`eval probe` needs scikit-learn, which can't be imported ({error}); `pip install 'precept[probe]'`"
        ) from error
