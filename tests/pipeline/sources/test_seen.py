import numpy as np
import numpy.typing as npt

from pipeline.sources.seen import FACTS, Seen, keys


def facts(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    made = np.zeros(len(rows), FACTS)
    made["row"], made["said"] = rows, rows + 7
    return made


def test_what_was_put_is_found_and_nothing_else() -> None:
    names, seen = keys([f"{number}.jpg" for number in range(5000)]), Seen()
    order = np.random.default_rng(0).permutation(4000)
    for start in range(0, 4000, 130):
        rows = order[start : start + 130]
        assert (seen.find(names[rows])["row"] == -1).all()
        seen.put(names[rows], facts(rows))
    found = seen.find(names)
    assert found["row"].tolist() == [*range(4000), *[-1] * 1000]
    assert (found["said"][:4000] == np.arange(4000) + 7).all()


def test_facts_that_are_put_again_are_replaced() -> None:
    names, seen = keys(["a", "b", "c"]), Seen()
    seen.put(names[:2], facts(np.array([0, 1])))
    seen.put(names[1:], facts(np.array([5, 2])))
    assert seen.find(names)["row"].tolist() == [0, 5, 2]
    assert seen.find(names[:0])["row"].tolist() == []
