"""The command line of `trainer`; the loop behind it is imported when it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train students from target stores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone would double the time of --help
)


@app.command()
def run(
    config: Annotated[
        str | None, typer.Option("--config", help="A recipe: a YAML file or a shipped name; default: shre.")
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            help="A store, a path or a URL such as s3://...; may be repeated; default: the newest in stores/.",
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run's folder; default: the next runs/RECIPE-DATASET-NNN.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue --run, begin it if it is not there; without --run, the newest one."
        ),
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting, such as epochs=3.")] = None,
) -> None:
    """Train a student, keep its checkpoints, and embed the validation and test splits with the best one."""
    from contract import config as configs
    from contract.errors import RunError
    from contract.storage import store_path
    from trainer import fit, runs
    from trainer.recipes import Recipe

    stores = [store_path(name) for name in store or ()]
    if resume and (run is None or run.exists()):
        begun = runs.resume(run, stores, configs.find("configs/trainer", config) if config else None, set_ or ())
    else:
        recipe = configs.load(configs.find("configs/trainer", config or "shre"), Recipe, set_ or ())
        begun = runs.begin(recipe, stores, run)
    if begun.record["finished"]:
        typer.echo(f"{begun.path} is finished; `eval retrieval --run {begun.path}` evaluates it", err=True)
        return
    typer.echo(f"run: {begun.path}", err=True)
    try:
        fit.fit(begun)
    except KeyboardInterrupt:
        again = f"trainer run --run {begun.path} --resume"
        raise RunError(f"interrupted; `{again}` continues after the last whole epoch") from None
    typer.echo(str(begun.path))


@app.command()
def embed(
    run: Annotated[Path, typer.Option("--run", help="The folder of a finished run.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, val or test; may be repeated; default: val and test."),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store", help="Of any dataset that the same encoders filled; default: the run's own stores."
        ),
    ] = None,
) -> None:
    """Embed more with a run's best checkpoint: the training split, or a dataset that it never saw."""
    from contract.storage import store_path
    from trainer import runs, student_stores

    found = student_stores.grow(runs.resume(run, []), split or (), [store_path(name) for name in store or ()])
    for path in found:
        typer.echo(str(path))
