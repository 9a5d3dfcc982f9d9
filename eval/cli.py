"""The command lines of `eval` and `retrieval`; the work behind them is imported when it is run."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import ConfigError

if TYPE_CHECKING:
    from eval.labelled import Source

RUNS = Path("runs")


class Projection(StrEnum):
    """How a page's map is made."""

    pca = "pca"
    umap = "umap"


class Format(StrEnum):
    """How a comparison is written."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"

    @classmethod
    def of(cls, file: Path) -> Format:
        """The one that a file's name ends in."""
        suffixes = {".txt": cls.text, ".md": cls.markdown, ".csv": cls.csv, ".tex": cls.latex}
        if file.suffix not in suffixes:
            raise ConfigError(f"--out {file}: give --format, or a name that ends in {', '.join(suffixes)}")
        return suffixes[file.suffix]


# Options that several verbs have.
Run = Annotated[
    Path | None, typer.Option("--run", help="Folder of a finished run; default: the newest under runs/.")
]
RunUnlessStore = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of a finished run; default: the newest under runs/, unless --store."),
]
Dataset = Annotated[str | None, typer.Option("--dataset", help="One of the run's datasets, where it has several.")]
LabelledModality = Annotated[
    str | None, typer.Option("--modality", help="image, text or audio; default: the first that has labels.")
]
Store = Annotated[
    str | None, typer.Option("--store", help="A target store, whose --field is measured too, or alone.")
]
StoredField = Annotated[
    str | None, typer.Option("--field", help="One vector an item, such as image/teacher/features.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")]

# Help without rich takes half the time: 0.3 s, not 0.55.
_app = typer.Typer(
    help="Measure what a student has learned, from the embeddings that its run wrote.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_retrieval_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
programs = {"eval": _app, "retrieval": _retrieval_app}


@_app.callback()
def _verbs() -> None:
    # Without a callback, Typer would make a program of one verb into that verb.
    pass


@_app.command()
@_retrieval_app.command()
def retrieval(
    run: Run = None,
    dataset: Dataset = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: test, or val where there is none.")] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", metavar="[PATH]", help="Keep a FAISS index in this folder; alone: in RUN/index."),
    ] = None,
    index_factory: Annotated[
        str | None,
        typer.Option(
            "--index-factory",
            metavar="INDEX",
            help="flat (the default), ivf, hnsw, ivfpq, opq, or a FAISS factory string such as IVF1024,PQ32.",
        ),
    ] = None,
    recall: Annotated[
        float | None, typer.Option("--recall", help="Share of the neighbours that the index is to find; 0.95.")
    ] = None,
    index_compare: Annotated[
        bool, typer.Option("--index-compare", help="Try every kind of index on the largest gallery.")
    ] = False,
    language: Annotated[str, typer.Option("--language", help="Of the captions.")] = "en",
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="flickr-1k, coco-5k, coco-1k or scenes; default: what the split is."),
    ] = None,
    k: Annotated[str, typer.Option("--k", help="The K of recall at K.")] = "1,5,10",
    grades: Annotated[
        Path | None,
        typer.Option("--grades", metavar="CSV", help="How relevant items are to each other; default: labels."),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Rank by the scores that a cross-encoder wrote beside the run, too.")
    ] = False,
    json: Json = False,
    html: Annotated[
        bool, typer.Option("--html/--no-html", help="Write a page to look at beside the report.")
    ] = True,
    since: Annotated[
        Path | None, typer.Option("--since", metavar="RUN", help="The page says what changed since this run.")
    ] = None,
    projection: Annotated[
        Projection, typer.Option("--map", help="How the page's map of the embeddings is made.")
    ] = Projection.pca,
    plots: Annotated[bool, typer.Option("--plots", help="Write the page's charts as PNG and SVG too.")] = False,
) -> None:
    """Rank every item of a split against all of another modality, in every direction."""
    from eval import page, report
    from eval.candidates import RECALL, Wanted
    from eval.holding import alone_in
    from eval.indexes import named
    from eval.retrieval import evaluate
    from eval.runs import newest_run, open_student

    measure = partial(
        evaluate, language=language, protocol=protocol, ks=_numbers("--k", k), grades=grades, say=_say
    )
    if html:
        page.require(projection.value, plots=plots)
    elif since is not None or plots:
        raise ConfigError("--since and --plots are parts of the page: leave out --no-html")
    if run is None:
        run = newest_run(RUNS)
        _say(f"run: {run} (the newest)")
    student = open_student(run, dataset)
    before = None if since is None else open_student(since, student.dataset)
    wanted = None
    if index is not None or index_factory is not None or recall is not None or index_compare:
        wanted = Wanted(
            folder=Path(index) if index else run / "index",
            index=named("flat" if index_factory is None else index_factory),
            recall=RECALL if recall is None else recall,
            compare=index_compare,
        )
    measured = measure(student, split=split, index=wanted, by_scores=rerank)
    earlier = None if before is None else measure(before, split=measured.split.split, index=None)
    with alone_in(run / "reports", _say):
        written: tuple[Path, ...] = report.write(measured, run / "reports")
        if html:
            path = written[0].with_suffix(".html")
            written += page.write(measured, path, since=earlier, method=projection.value, plots=plots)
    typer.echo(report.as_json(measured) if json else report.as_text(measured, written), nl=not json)


@_app.command()
def search(
    item: Annotated[str | None, typer.Option("--id", help="Of the item whose neighbours are wanted.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="A text, encoded by RUN/export.")] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="FILE", help="A picture, likewise.")] = None,
    audio: Annotated[str | None, typer.Option("--audio", metavar="FILE", help="A sound, likewise.")] = None,
    run: Run = None,
    dataset: Dataset = None,
    split: Annotated[
        str | None, typer.Option("--split", help="To look for a text or a file in; default: test, or val.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Of the item, where several modalities have its id.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Only captions in this language; default: all.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Neighbours in each modality.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Show the nearest neighbours of an item, a text, a picture or a sound in every modality."""
    from eval import queries, report_search
    from eval import search as searching
    from eval.runs import newest_run, open_student

    asked = {"--id": item, "--text": text, "--image": image, "--audio": audio}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(asked)}, not {' and '.join(given) or 'none'}")
    ((option, content),) = given.items()
    for name, value, of_items in (("--split", split, False), ("--modality", modality, True)):
        if value is not None and of_items != (option == "--id"):
            raise ConfigError(f"{name} goes with {'--id' if of_items else '--text, --image or --audio'}")
    if run is None:
        run = newest_run(RUNS)
        _say(f"run: {run} (the newest)")
    student = open_student(run, dataset)
    if option == "--id":
        found = searching.search(student, content, modality=modality, language=language, k=k, say=_say)
    else:
        own = option.removeprefix("--")
        found = queries.search(student, own, content, split=split, language=language, k=k, say=_say)
    typer.echo(report_search.as_json(found) if json else report_search.as_text(found), nl=not json)


@_app.command()
def neighbours(
    run: RunUnlessStore = None,
    dataset: Dataset = None,
    modality: LabelledModality = None,
    store: Store = None,
    field: StoredField = None,
    bank: Annotated[str, typer.Option("--bank", help="The split that is the memory bank.")] = "train",
    queries: Annotated[str, typer.Option("--queries", help="The split that asks it.")] = "test",
    k: Annotated[str, typer.Option("--k", help="How many neighbours; several with commas.")] = "1,3",
    json: Json = False,
) -> None:
    """Classify labelled items by their nearest neighbours, memory bank against queries and the other way round."""
    from eval import report_neighbours as report
    from eval.holding import alone_in
    from eval.neighbours import evaluate

    ks = _numbers("--k", k)
    run, sources = _sources(run, dataset, modality, store, field)
    found = evaluate(sources, bank=bank, queries=queries, ks=ks, say=_say)
    written: tuple[Path, ...] = ()
    if run is not None:
        with alone_in(run / "reports", _say):
            written = report.write(found, run / "reports")
    typer.echo(report.as_json(found) if json else report.as_text(found, written), nl=not json)


@_app.command()
def probe(
    run: RunUnlessStore = None,
    dataset: Dataset = None,
    modality: LabelledModality = None,
    store: Store = None,
    field: StoredField = None,
    train: Annotated[str, typer.Option("--train", help="The split that is fitted.")] = "train",
    val: Annotated[
        str, typer.Option("--val", help="The split that chooses C; cross-validation where it has no labels.")
    ] = "val",
    test: Annotated[str, typer.Option("--test", help="The split that is measured.")] = "test",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the folds of a cross-validation.")] = 0,
    json: Json = False,
) -> None:
    """Fit a linear classifier to frozen embeddings of labelled items, and measure it."""
    from eval import report_probe as report
    from eval.holding import alone_in
    from eval.probe import evaluate

    run, sources = _sources(run, dataset, modality, store, field)
    found = evaluate(sources, train=train, val=val, test=test, seed=seed, say=_say)
    written: tuple[Path, ...] = ()
    if run is not None:
        with alone_in(run / "reports", _say):
            written = report.write(found, run / "reports")
    typer.echo(report.as_json(found) if json else report.as_text(found, written), nl=not json)


@_app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Evaluated runs; the first is the base.")
    ],
    report: Annotated[
        str | None, typer.Option("--report", help="Such as retrieval-coco-test; default: the one all runs have.")
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Runs that differ in their seed alone count as one: mean, deviation.")
    ] = False,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Default: what --out ends in, or text.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it to this file (.md, .csv, .tex, .txt).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Put the figures of several runs side by side, with how sure their differences are."""
    from contract.files import replace_file
    from eval import compare as comparing
    from eval.report_compare import FORMATS

    chosen = format_ or (Format.of(out) if out is not None else Format.text)
    found = comparing.compare(runs, report=report, grouped=group, seed=seed, say=_say)
    text = FORMATS[chosen.value](found)
    if out is None:
        typer.echo(text, nl=False)
    else:
        if not out.parent.is_dir():
            raise ConfigError(f"--out {out}: there is no folder {out.parent}")
        replace_file(out, text.encode())
        _say(f"written: {out}")


def completed(arguments: Sequence[str]) -> list[str]:
    """The command line with `--index` written as `--index=` where no path follows it.

    Typer has no option with an optional value (its `flag_value` is ignored), so this is done before it reads.
    """
    following = [*arguments[1:], "-"]
    return [
        "--index=" if argument == "--index" and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=False)
    ]


def _sources(
    run: Path | None, dataset: str | None, modality: str | None, store: str | None, field: str | None
) -> tuple[Path | None, list[Source]]:
    """The run, if any, and what is measured: its student, the store's field, or one beside the other."""
    from eval import labelled
    from eval.runs import newest_run

    if (store is None) != (field is None):
        raise ConfigError("--store and --field go together: which store, and which of its fields")
    if run is None and store is None:
        run = newest_run(RUNS)
        _say(f"run: {run} (the newest)")
    sources = [] if run is None else [labelled.of_run(run, dataset, modality)]
    if store is not None and field is not None:
        sources.append(labelled.of_store(store, field))
    labelled.require_alike(sources)
    return run, sources


def _numbers(option: str, text: str) -> list[int]:
    """Numbers from 1 on with commas between them, ascending, each once."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{option} {text}: expected numbers from 1 on with commas between them, as in 1,3,10")
    return sorted({int(part) for part in parts})


def _say(line: str) -> None:
    typer.echo(line, err=True)
