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
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="How many of the newest checkpoints stay; default: 2.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace ten steps, and write where their time goes to RUN/profile.")
    ] = False,
    num_workers: Annotated[
        int,
        typer.Option(
            "--num-workers", min=1, help="GPUs, or processes where there are none, that share each batch."
        ),
    ] = 1,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="A Ray cluster's HOST:PORT; default: this machine.")
    ] = None,
    restarts: Annotated[
        int,
        typer.Option("--restarts", min=0, help="How often workers may die and go on from the newest checkpoint."),
    ] = 3,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting, such as epochs=3.")] = None,
) -> None:
    """Train a student, keep its checkpoints, and embed the validation and test splits with the best one."""
    from contract import config as configs
    from contract.errors import RunError
    from contract.storage import store_path
    from trainer import fit, runs
    from trainer.recipes import Recipe

    stores = [store_path(name) for name in store or ()]
    changes = [*(set_ or ()), *([] if keep is None else [f"checkpoints.keep={keep}"])]
    if resume and (run is None or run.exists()):
        begun = runs.resume(run, stores, configs.find("configs/trainer", config) if config else None, changes)
    else:
        recipe = configs.load(configs.find("configs/trainer", config or "shre"), Recipe, changes)
        begun = runs.begin(recipe, stores, run)
    if begun.record["finished"]:
        typer.echo(
            f"{begun.path} is finished; `eval {begun.measured_by} --run {begun.path}` evaluates it", err=True
        )
        return
    typer.echo(f"run: {begun.path}", err=True)
    try:
        if num_workers > 1 or ray_address is not None:
            from trainer.distribute import fit_on_workers

            fit_on_workers(begun, num_workers, ray_address, restarts=restarts, profile=profile)
        else:
            fit.fit(begun, profile=profile)
    except KeyboardInterrupt:
        again = f"trainer run --run {begun.path} --resume"
        raise RunError(f"interrupted; `{again}` goes on from the newest checkpoint") from None
    typer.echo(str(begun.path))


@app.command()
def embed(
    run: Annotated[Path, typer.Option("--run", help="The folder of a finished run.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, val or test; may be repeated; default: val and test."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset", help="One of the run's, or of stores/DATASET.zarr; may be repeated; default: all."
        ),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option("--store", help="Another store that the same encoders filled; may be repeated."),
    ] = None,
) -> None:
    """Embed more with a run's best checkpoint: the training split, or a dataset that it never saw."""
    from contract.storage import store_path
    from trainer import runs, student_stores

    begun = runs.resume(run, [])
    stores = [student_stores.of_dataset(begun, name) for name in dataset or ()] + [
        store_path(s) for s in store or ()
    ]
    for path in student_stores.grow(begun, split or (), stores):
        typer.echo(str(path))


@app.command()
def caption(
    run: Annotated[Path, typer.Option("--run", help="The folder of a finished run that trained a decoder.")],
    split: Annotated[
        list[str] | None, typer.Option("--split", help="train, val or test; may be repeated; default: test.")
    ] = None,
    beam: Annotated[int, typer.Option("--beam", min=1, help="Beginnings that are kept at a time; 1: greedy.")] = 3,
) -> None:
    """Write captions of a split's items to RUN/captions, and score them by BLEU-4 and CIDEr."""
    from trainer import captioning, runs

    for scores in captioning.write(runs.resume(run, []), split or ["test"], beam):
        typer.echo(str(scores))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[Path | None, typer.Option("--to", help="The folder to write; default: RUN/export.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write quantized models too, and how far they lie from the others.")
    ] = False,
) -> None:
    """Write a run's students as ONNX models, with all that they need to embed files without Precept."""
    from trainer import runs
    from trainer.export import bundle

    typer.echo(str(bundle.write(runs.resume(run, []), to, int8=int8, say=lambda line: typer.echo(line, err=True))))


@app.command()
def sweep(
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="A YAML file or a shipped name; may be repeated; default: shre."),
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="Such as 0,1,2 or 0-2; default: 0-2.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", help="A setting's values, such as optimizer.learning_rate=1e-3,3e-4; may be repeated."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of all, such as epochs=3.")
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option("--store", help="As for `trainer run`; may be repeated.")
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option("--sweep", help="Its folder; what is finished there stays; default: the next runs/sweep-NNN."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Any figure of a validation; default: the recipe's own.")
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option("--concurrent", min=1, help="Runs at a time; default: one per GPU, or per two cores."),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="A Ray cluster's HOST:PORT; default: this machine.")
    ] = None,
) -> None:
    """Train recipes x seeds x settings from one store, some at once, and compare them; goes on where it was."""
    from functools import partial

    from contract.errors import RunError
    from trainer import sweep as sweeps

    if sweep is not None and (sweep / "sweep.json").exists() and not (recipe or seed or grid or set_ or store):
        asked = sweeps.load(sweep, metric)
    else:
        asked = sweeps.Sweep(
            recipes=recipe or ["shre"],
            seeds=sweeps.parse_seeds(seed or "0-2"),
            grid=sweeps.parse_grid(grid or ()),
            changes=set_ or [],
            stores=store or [],
            metric=metric,
        )
    path = sweep or sweeps.new_path()
    say = partial(typer.echo, err=True)
    try:
        typer.echo(sweeps.run_sweep(path, asked, say=say, concurrent=concurrent, address=ray_address))
    except KeyboardInterrupt:
        raise RunError(f"interrupted; `trainer sweep --sweep {path}` goes on") from None
    if left := sweeps.num_unfinished(path, asked):
        raise RunError(f"{left} runs are not finished; `trainer sweep --sweep {path}` goes on with them")


@app.command()
def show(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are drawn over one another.")],
    figure: Annotated[
        list[str] | None,
        typer.Option("--figure", help="A part of the names of figures to show, such as spread; may be repeated."),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Draw the charts into this file too.")] = None,
) -> None:
    """Draw the curves of runs: score, parts of the loss, learning rate, speed."""
    from trainer.show import show as shown

    for text in shown(runs, figure or (), png):
        typer.echo(text)
