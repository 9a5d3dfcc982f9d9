"""The command lines of `eval` and `retrieval`; the work behind them is imported when it is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")

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
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of a finished run; default: the newest under runs/.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="One of the run's datasets, where it has several.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: test, or val where there is none.")] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", metavar="[PATH]", help="Keep a FAISS index in this folder; alone: in RUN/index."),
    ] = None,
    language: Annotated[str, typer.Option("--language", help="Of the captions.")] = "en",
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Rank every item of a split against all of another modality, in every direction."""
    from eval import report
    from eval.retrieval import evaluate
    from eval.runs import newest_run, open_student

    if run is None:
        run = newest_run(RUNS)
        _say(f"run: {run} (the newest)")
    student = open_student(run, dataset)
    folder = None if index is None else Path(index) if index else run / "index"
    measured = evaluate(student, split=split, language=language, index=folder, say=_say)
    written = report.write(measured, run / "reports")
    typer.echo(report.as_json(measured) if json else report.as_text(measured, written), nl=not json)


def completed(arguments: Sequence[str]) -> list[str]:
    """The command line with `--index` written as `--index=` where no path follows it.

    Typer has no option with an optional value (its `flag_value` is ignored), so this is done before it reads.
    """
    following = [*arguments[1:], "-"]
    return [
        "--index=" if argument == "--index" and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=False)
    ]


def _say(line: str) -> None:
    typer.echo(line, err=True)
