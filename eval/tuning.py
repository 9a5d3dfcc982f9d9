"""How an index is searched: the least effort that reaches a wanted recall on a sample of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from contract import fingerprint
from eval.gallery import Gallery
from eval.indexes.knobs import Settings, put
from eval.sample import Sample

# Where the wanted recall is out of reach, the last hundredth below what is in reach is not worth its effort.
CONCESSION = 0.01


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The `settings` for a `wanted` recall of the k nearest, and what they `reached` where they were chosen.

    `queries` is the fingerprint of those they were chosen on.
    """

    wanted: float
    reached: float
    settings: Settings
    queries: str


def tune(index: Gallery, among: Sequence[Sample], wanted: float, say: Callable[[str], None]) -> Tuned:
    """Set the index to reach the wanted recall on each of the samples; settings that are known are used again."""
    queries = fingerprint.of_bytes(*(sample.queries.data for sample in among))
    known = index.about.get("tuned", {})
    if (known.get("wanted"), known.get("queries")) == (wanted, queries):
        tuned = Tuned(**known)
    else:
        tuned = _tuned(index, among, wanted, queries)
        _remember(index, tuned, say)
    put(index.index, tuned.settings)
    if tuned.reached < wanted:
        say(
            f"note: {index.description.name}: a recall of {wanted:g} is out of its reach, it is set to "
            f"{tuned.reached:.3f}; what codes lose, `,RFlat` behind them in --index-factory brings back"
        )
    return tuned


def _remember(index: Gallery, tuned: Tuned, say: Callable[[str], None]) -> None:
    try:
        index.remember(asdict(tuned), say)
    except OSError as error:  # an index that is only read, such as another user's
        say(f"note: {index.path}: its settings can't be kept, they are chosen anew each time: {error}")


def _tuned(index: Gallery, among: Sequence[Sample], wanted: float, queries: str) -> Tuned:
    """Turn down one knob after the other, as far as the recall allows."""

    def recall(settings: Settings) -> float:
        put(index.index, settings)
        return min(sample.recalls(index).all_at_k for sample in among)

    settings = {knob.name: knob.most for knob in index.knobs}
    best = recall(settings)
    enough = wanted if best >= wanted else best - CONCESSION
    for knob in index.knobs:

        def is_enough(value: int, name: str = knob.name) -> bool:
            return recall(settings | {name: value}) >= enough

        settings[knob.name] = _smallest(knob.most, is_enough)
    return Tuned(wanted=wanted, reached=recall(settings), settings=settings, queries=queries)


def _smallest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest number that is enough, where every greater one is too, as `most` is."""
    low, high = 0, 1
    while high < most and not is_enough(high):
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
