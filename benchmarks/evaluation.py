"""How fast exact ranks are beside a bare matrix product, and beside other tools on the same embeddings.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--work DIR] [--rounds 7] [--peer-python PATH]
                                                      [--large-rows 4096] [--images 5000]

The product: one float32 `np.matmul` of the images [5,000, 512] with the captions [25,000, 512], of unit length,
both in memory, into an array that is there. One product holds the scores of both directions. Ours begins with the
embeddings as a run has them, brings them to unit length, and ends with the exact rank of every query in both
directions (`ranks_over_matmul`), or with that of every positive and all figures (`figures_over_matmul`).

Peers: CLIP_benchmark's and sentence-transformers' evaluation of the same embeddings, R@1, 5 and 10 both ways, in a
process of their own (`--peer-python`, else this Python, if it has them; requirements-evaluation.txt) with as many
threads as ours has. They take turns with ours: product, ranks, figures, peer, peer; every round begins with
another. Peers are compared with our figures, which are more than theirs. Whether a query has a hit is compared
query by query, also on embeddings made to tie (few values, copies); each difference is told by its cause: a tie,
which CLIP_benchmark breaks as `torch.topk` happens to, or two scores that float32 can't tell apart. What is neither
is `unexplained`.

Large: 100,000 images and 500,000 captions. By default a part of the images' rows is ranked among all captions, and
timed against the product of the same rows alone; `--large-rows 100000` ranks all, both ways. What the process has
in memory before and at most stands beside the 1.2 GB that the embeddings take.

The last line is JSON: medians of ratios of seconds, quartiles, milliseconds, differences, versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers.timing import alternate, ratios, spread

from contract.ranking import Ranks, rank, rank_both, summarise

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BENCHMARKS = Path(__file__).resolve().parent
WIDTH, CAPTIONS = 512, 5
NUM_LARGE = 100_000
TOOLS = ("clip_benchmark", "sentence_transformers")
KS = (1, 5, 10)
# Two scores that are nearer may come out of a float32 product in any order.
FLOAT32 = (WIDTH + 2) * 2.0**-23


def main() -> None:
    """Make embeddings, measure, report."""
    options = parse_options()
    if options.large_only:
        print(json.dumps(measure_large(options.large_rows)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    sets = {"protocol": embeddings(options.images, WIDTH), "ties": tied(500)}
    for name, arrays in sets.items():
        np.savez(options.work / f"{name}.npz", **arrays)
    with ExitStack() as stack:
        peers, skipped = {}, {}
        for tool in TOOLS:
            try:
                peers[tool] = stack.enter_context(peer(tool, options.peer_python, options.work))
            except OSError as reason:
                skipped[tool] = str(reason)
        result = measure_protocol(sets["protocol"], peers, options.rounds)
    found = {tool: differences(sets, tool, options.work) for tool in peers}
    say("large")
    command = [sys.executable, __file__, "--large-only", "--large-rows", str(options.large_rows)]
    large = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout if options.large_rows else "{}"
    )
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    print(
        json.dumps(
            {
                **result,
                "differences": found,
                "large": json.loads(large),
                "skipped": skipped,
                "about": {
                    "machine": platform.processor() or platform.machine(),
                    "threads": threads,
                    "numpy": np.__version__,
                },
            }
        )
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-evaluation"))
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="one that has the peers")
    parser.add_argument("--large-rows", type=int, default=4096, help=f"of {NUM_LARGE:,}; 0 leaves this part out")
    parser.add_argument("--large-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_protocol(
    arrays: dict[str, npt.NDArray[Any]], peers: dict[str, Callable[[str], float]], rounds: int
) -> dict[str, Any]:
    """Product, ranks, figures and peers in turn."""
    images, captions, pairs, ids = as_input(arrays)
    product = np.empty((len(images), len(captions)), np.float32)
    seconds_of_peers: dict[str, list[float]] = {tool: [] for tool in peers}

    def ask(tool: str) -> Callable[[object], object]:
        return lambda _: seconds_of_peers[tool].append(peers[tool]("protocol"))

    actions: dict[str, Callable[[object], object]] = {
        "matmul": lambda _: np.matmul(images, captions.T, out=product),
        "ranks": lambda _: rank_both(images, captions, pairs, *ids, every=False),
        "figures": lambda _: [summarise(ranks) for ranks in rank_both(images, captions, pairs, *ids)],
        **{tool: ask(tool) for tool in peers},
    }
    for name in ("matmul", "ranks", "figures"):
        actions[name](None)
    say(f"{len(images):,} images and {len(captions):,} captions, {rounds} rounds")
    seconds = alternate(actions, lambda: None, rounds)
    seconds |= seconds_of_peers  # without the way there and back
    over = {
        "ranks_over_matmul": ratios(seconds["ranks"], seconds["matmul"]),
        "figures_over_matmul": ratios(seconds["figures"], seconds["matmul"]),
        **{f"{tool}_over_ours": ratios(seconds[tool], seconds["figures"]) for tool in peers},
    }
    return {
        **{name: spread(values)["median"] for name, values in over.items()},
        "quartiles": {name: spread(values) for name, values in over.items()},
        "milliseconds": {name: spread([1000 * s for s in values], 1) for name, values in seconds.items()},
        "recalls": recalls(rank_both(images, captions, pairs, *ids)),
    }


def measure_large(num_rows: int) -> dict[str, Any]:
    """Ranks of a part of the images' rows, or of all both ways, against the product alone."""
    arrays = embeddings(NUM_LARGE, WIDTH)
    images, captions, pairs, ids = as_input(arrays)
    whole = num_rows >= len(images)
    started = time.perf_counter()
    with memory_watched() as memory:
        if whole:
            found = recalls(rank_both(images, captions, pairs, *ids, every=False))
        else:
            inside = pairs[pairs[:, 0] < num_rows]
            ranks = rank(images[:num_rows], captions, inside, ids[1], every=False)
            found = {"image-to-text": summarise(ranks)["R@1"]}
    ours_s = time.perf_counter() - started
    rows = images[:num_rows]
    started = time.perf_counter()
    buffer = np.empty((min(1024, len(rows)), 65536), np.float32)
    for row in range(0, len(rows), len(buffer)):
        for column in range(0, len(captions), buffer.shape[1]):
            left, right = rows[row : row + len(buffer)], captions[column : column + buffer.shape[1]]
            np.matmul(left, right.T, out=buffer[: len(left), : len(right)])
    product_s = time.perf_counter() - started
    return {
        "images": len(images),
        "captions": len(captions),
        "rows": len(rows),
        "both_ways": whole,
        "seconds": round(ours_s, 1),
        "product_seconds": round(product_s, 1),
        "over_product": round(ours_s / product_s, 3),
        "embeddings_gb": round((images.nbytes + captions.nbytes) / 1e9, 2),
        "memory_before_gb": round(memory[0] / 1e9, 2),
        "memory_most_gb": round(max(memory) / 1e9, 2),
        "R@1": found,
    }


@contextmanager
def memory_watched() -> Iterator[list[int]]:
    """What the process has in memory, in bytes, ten times a second; the first is what it had before."""
    found, ended = [resident_bytes()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            found.append(resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def embeddings(num_images: int, width: int) -> dict[str, npt.NDArray[Any]]:
    """Images and five captions of each, float32 of unit length: about as far apart as a good dual encoder's."""
    rng = np.random.default_rng(0)
    meaning = rng.standard_normal((num_images, width), np.float32)
    owners = np.repeat(np.arange(num_images), CAPTIONS)
    captions = meaning[owners] + 6 * rng.standard_normal((len(owners), width), np.float32)
    images = meaning + 1.5 * rng.standard_normal((num_images, width), np.float32)
    return {"images": unit(images), "captions": unit(captions), "owners": owners}


def tied(num_images: int) -> dict[str, npt.NDArray[Any]]:
    """Embeddings of few values, every tenth image a copy of the one before."""
    rng = np.random.default_rng(1)
    meaning = rng.integers(-1, 2, (num_images, 16))
    meaning[::10] = meaning[9::10]
    owners = np.repeat(np.arange(num_images), CAPTIONS)
    captions = meaning[owners] + rng.integers(-1, 2, (len(owners), 16))
    return {"images": unit(meaning), "captions": unit(captions), "owners": owners}


def unit(values: npt.NDArray[Any]) -> Vectors:
    return (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def as_input(
    arrays: dict[str, npt.NDArray[Any]],
) -> tuple[Vectors, Vectors, Rows, tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]]:
    """Images, captions, pairs and ids, as `rank_both` takes them."""
    images, captions, owners = arrays["images"], arrays["captions"], arrays["owners"]
    ids = tuple(np.array([f"{n:06}" for n in range(len(vectors))]) for vectors in (images, captions))
    return images, captions, np.stack([owners, np.arange(len(owners))], axis=1), (ids[0], ids[1])


def recalls(both: tuple[Ranks, Ranks]) -> dict[str, float]:
    names = ("image-to-text", "text-to-image")
    return {name: summarise(ranks)["R@1"] for name, ranks in zip(names, both, strict=True)}


def differences(sets: dict[str, dict[str, npt.NDArray[Any]]], tool: str, work: Path) -> dict[str, Any]:
    """Of each set, how many of a tool's hits are not ours, by their cause."""
    found: dict[str, Any] = {}
    for name, arrays in sets.items():
        images, captions, pairs, ids = as_input(arrays)
        forward, backward = rank_both(images, captions, pairs, *ids)
        causes = {"queries": 0, "tie": 0, "float32": 0, "unexplained": 0}
        with np.load(work / f"{name}.{tool}.npz") as hits:
            for way, ranks, queries, gallery, own in (
                ("image-to-text", forward, images, captions, pairs),
                ("text-to-image", backward, captions, images, pairs[:, ::-1]),
            ):
                for k in KS:
                    causes["queries"] += len(ranks.ranks)
                    for query in np.flatnonzero((ranks.ranks <= k) != hits[f"{way}@{k}"]):
                        causes[cause(queries[query], gallery, own[own[:, 0] == query, 1])] += 1
        found[name] = causes
    return found


def cause(query: Vectors, gallery: Vectors, positives: Rows) -> str:
    """Why the rank of a query's best positive may differ: how near the nearest other item's score is."""
    scores = gallery.astype(np.float64) @ query.astype(np.float64)
    apart = np.abs(np.delete(scores, positives) - scores[positives].max()).min()
    return "tie" if apart < 1e-9 else "float32" if apart < FLOAT32 else "unexplained"


@contextmanager
def peer(tool: str, python: Path, work: Path) -> Iterator[Callable[[str], float]]:
    """A function that has a peer's process evaluate a set, and gives the seconds; `OSError` without the peer."""
    say(tool)
    command = [python.absolute(), "-m", "peers.evaluators", tool, work.absolute()]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=BENCHMARKS, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=_environment()
    )
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None
    if not answers.readline():
        raise OSError(
            f"{python} -m peers.evaluators {tool} ended with exit code {process.wait()}: is it installed?"
        )

    def ask(name: str) -> float:
        questions.write(f"{name}\n")
        questions.flush()
        return float(json.loads(answers.readline())["seconds"])

    try:
        yield ask
    finally:
        with suppress(BrokenPipeError):
            questions.close()
        process.wait()


def _environment() -> dict[str, str]:
    """Without the paths of this Python's packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
