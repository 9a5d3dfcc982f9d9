from __future__ import annotations

import sys

import faiss
import numpy as np
import pytest

from contract.errors import ConfigError, DataError, UserError
from eval import vectors
from eval.indexes import KINDS, Factory, library, named
from eval.indexes.building import TRAINING_PER_CENTROID, Built, build
from eval.indexes.ivfpq import num_bytes
from eval.indexes.knobs import knobs, put
from eval.indexes.library import core, is_on_gpu, outspoken, placed
from eval.vectors import Vectors

WIDTH = 16


def held(array: np.ndarray) -> Vectors:
    return Vectors(name="toy: image", num_rows=len(array), width=array.shape[1], load=lambda rows: array[rows])


def random(num_vectors: int = 400, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num_vectors, width)).astype(np.float32)


def built(factory: str, array: np.ndarray, said: list[str] | None = None) -> Built:
    return build(factory, held(array), "toy", (said if said is not None else []).append)


def found(factory: str, array: np.ndarray, k: int = 1) -> np.ndarray:
    """The k best rows that the index finds of every vector, with all the effort it can make."""
    index = built(factory, array).index
    put(index, {knob.name: knob.most for knob in knobs(index)})
    return index.search(held(array).read(np.arange(len(array))), k)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_vectors_it_holds(kind):
    array = random()
    rows = found(KINDS[kind].factory(*array.shape), array)
    assert (rows[:, 0] == np.arange(len(array))).mean() > 0.95


@pytest.mark.parametrize(
    "factory",
    ["SQ8", "IVF8_HNSW4,Flat", "IVF8(IVF2,Flat),Flat", "PQ4x6", "PCAR8,IVF8,Flat", "IVF8,PQ4x4fs,RFlat"],
)
def test_any_factory_string_is_an_index(factory):
    assert (found(factory, random(), k=10) >= 0).all()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW8", "IVF8_HNSW4,PQ4x4", "OPQ4_8,IVF8,PQ4x4,RFlat"])
def test_inner_products_are_what_every_part_ranks_by(factory):
    index = built(factory, random()).index
    inner = core(index)
    assert index.metric_type == inner.metric_type == faiss.METRIC_INNER_PRODUCT
    if isinstance(inner, faiss.IndexIVF):
        assert inner.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
        assert inner.cp.spherical


def test_vectors_of_any_length_are_indexed_at_length_one():
    array = random()
    lengths = np.linspace(0.01, 100, len(array), dtype=np.float32)[:, None]
    np.testing.assert_array_equal(found("Flat", array * lengths, k=5), found("Flat", array, k=5))


@pytest.mark.parametrize(
    ("num_vectors", "factory"), [(1, "IVF1,Flat"), (77, "IVF1,Flat"), (1000, "IVF25,Flat"), (10**6, "IVF4000,Flat")]
)
def test_a_gallery_has_as_many_cells_as_it_can_fill(num_vectors, factory):
    assert KINDS["ivf"].factory(num_vectors, 512) == factory


@pytest.mark.parametrize(("width", "size"), [(512, 64), (384, 48), (100, 10), (16, 2), (7, 1), (1, 1)])
def test_a_code_divides_the_width(width, size):
    assert num_bytes(width) == size
    assert KINDS["opq"].factory(10_000, width) == f"OPQ{size},IVF256,PQ{size}"


def test_a_kind_goes_by_its_name_and_all_else_is_a_factory_string():
    assert named("hnsw") == KINDS["hnsw"]
    assert named("IVF8,Flat") == Factory(string="IVF8,Flat")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "Nonsense",
            "FAISS has no such index for inner products of vectors of width 16: could not parse index string",
        ),
        ("hnws", "could not parse index string hnws"),
        ("", "expected something like IVF1024,PQ32"),
        ("IVF8, Flat", "expected something like IVF1024,PQ32"),
        ("Z" * 100_000, "expected something like IVF1024,PQ32"),
        ("IVF1024,Flat", "1,024 centroids for 400 vectors of toy; ask for fewer"),
        ("IVF99999999999,Flat", "99,999,999,999 centroids for 400 vectors"),
        ("PQ4x16", "65,536 centroids for 400 vectors"),
        ("IVF8,PQ5", "should be a multiple of the number of subquantizers"),
        ("IVF0,Flat", "'IVF0' is too few to build an index of"),
        ("HNSW1", "'HNSW1' is too few"),
        ("PQ4x0", "'x0' is too few"),
        ("HNSW8_PQ4", "no such index for inner products"),
        ("LSH", "of width 16: it wants metric == METRIC_L2"),
        ("IMI2x4,Flat", "MultiIndex not implemented for inner prod search"),
        ("IDMap,Flat", "add does not make sense with IndexIDMap"),
    ],
)
def test_a_string_that_is_no_index_is_one_clear_line(factory, message):
    with pytest.raises(ConfigError, match=r"^--index-factory") as caught:
        built(factory, random())
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_only_a_sample_and_a_block_are_in_memory_at_once(monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 1000)
    array, asked = random(20_000, 4), []

    def load(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return array[rows]

    gallery = Vectors(name="toy", num_rows=len(array), width=4, load=load)
    made = build("IVF16,Flat", gallery, "toy", [].append)
    assert made.num_training == 256 * TRAINING_PER_CENTROID == 16_384
    assert asked == [1000] * 16 + [384] + [1000] * 20
    assert made.index.ntotal == 20_000


@pytest.mark.parametrize("block_rows", [1, 7, 400])
def test_blocks_make_the_same_index(monkeypatch, block_rows):
    monkeypatch.setattr(vectors, "BLOCK_ROWS", block_rows)
    index = built("IVF8,Flat", random()).index
    monkeypatch.undo()
    np.testing.assert_array_equal(
        faiss.serialize_index(index), faiss.serialize_index(built("IVF8,Flat", random()).index)
    )


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_one_item_is_a_gallery(kind):
    assert found(KINDS[kind].factory(1, WIDTH), random(1)).tolist() == [[0]]


@pytest.mark.parametrize("kind", ["ivfpq", "opq"])
def test_codes_of_a_small_gallery_are_one_clear_line(kind):
    with pytest.raises(
        ConfigError, match=r"FAISS can't build it for the 100 vectors of toy: .*100.* at least .*256"
    ):
        built(KINDS[kind].factory(100, WIDTH), random(100))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gallery_of_equal_vectors_is_found_whole(kind):
    rows = found(KINDS[kind].factory(300, WIDTH), np.ones((300, WIDTH), np.float32), k=10)
    assert all(len(set(row)) == 10 for row in rows.tolist())
    assert (rows >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_vectors_are_vectors_too(kind):
    array = random()
    array[::2] = 0
    assert built(KINDS[kind].factory(*array.shape), array).index.ntotal == 400


def test_what_is_not_finite_is_named():
    array = random()
    array[123, 4] = np.nan
    with pytest.raises(DataError, match="toy: image row 123: its embedding has values that are not finite"):
        built("Flat", array)


def test_what_faiss_prints_is_said_once_with_the_name_of_the_index(capfd):
    said: list[str] = []
    built("PQ4", random(), said)
    assert len(said) == 1
    assert said[0].startswith("note: toy: FAISS says: clustering 400 points to 256 centroids: please provide")
    assert "WARNING" not in capfd.readouterr().err


def test_an_error_amid_what_faiss_prints_gets_through(capfd):
    with pytest.raises(UserError, match="the reason"), outspoken("toy", [].append):
        raise UserError("the reason")
    print("heard again", file=sys.stderr)
    assert "heard again" in capfd.readouterr().err


def test_an_index_that_no_gpu_takes_stays_and_says_so(monkeypatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    said: list[str] = []
    index = built("HNSW8", random()).index
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuse, raising=False)
    monkeypatch.setattr(library, "resources", lambda: None)
    assert placed(index, "toy", said.append) is index
    assert said == [
        "note: toy: it is searched on the processor, FAISS can't place it on the GPU: not implemented on GPU"
    ]
    assert not is_on_gpu(index)


def refuse(*_: object) -> None:
    raise RuntimeError(
        "Error in virtual faiss::Index* clone_Index() at /faiss/gpu/GpuCloner.cpp:1: not implemented on GPU"
    )
