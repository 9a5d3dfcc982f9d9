"""The command line of `pipeline`; the programs behind it are imported when they are run."""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contract.manifest import Manifest
    from contract.storage import StorePath
    from contract.store import TargetStore
    from pipeline.plan import Task
    from pipeline.precompute import Done
    from pipeline.settings import Precompute

app = typer.Typer(
    help="Run the frozen teacher and encoders once over a dataset, and keep what they say in a target store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone would double the time of --help
)

STORES = Path("stores")


class Engine(StrEnum):
    """Where the encoders run."""

    ray = "ray"
    local = "local"


DatasetOption = Annotated[
    str, typer.Option("--dataset", help="Name of a dataset (coco, flickr8k, scenes...), or a YAML file like it.")
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", help="Encoders: a YAML file or a shipped name; default: the dataset's own."),
]
RootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Folder that holds the dataset; default: data/<dataset>.")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="The store: a path, or a URL such as s3://...; default: stores/<dataset>.zarr."),
]
ViewsOption = Annotated[
    int | None,
    typer.Option("--views", min=0, help="Augmented views of every image and sound, beside the evaluation view."),
]
EngineOption = Annotated[Engine, typer.Option(help="Ray's actors, or this process.")]
BatchOption = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Views in one forward pass of every encoder; auto: the most that memory allows, found by trying.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="A running Ray cluster, such as auto or HOST:6379; default: one of our own."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting, such as encoders.image.teacher.batch_size=32.")
]
StoreArgument = Annotated[str, typer.Argument(help="A store, such as stores/scenes.zarr.")]


@app.command()
def precompute(
    dataset: DatasetOption,
    config: ConfigOption = None,
    data_root: RootOption = None,
    store: StoreOption = None,
    views: ViewsOption = None,
    engine: EngineOption = Engine.ray,
    ray_address: AddressOption = None,
    batch_size: BatchOption = None,
    set_: SetOption = None,
) -> None:
    """Compute and store patch embeddings and soft targets; continues a run that was interrupted."""
    from contract.errors import ConfigError
    from contract.store import TargetStore, writing
    from pipeline import plan as planning
    from pipeline import precompute as running

    if ray_address and engine is Engine.local:
        raise ConfigError(f"--ray-address {ray_address}: --engine local asks for no Ray; leave one of them out")
    settings, manifest, path = _inputs(dataset, config, data_root, store, views, set_)
    with writing(path):
        tasks = planning.make(settings, manifest, path, command=_command(), batch_size=batch_size)
        planning.check_disk_space(tasks, path)
        typer.echo(planning.table(tasks, path), err=True)
        _say_notes(tasks)
        target = TargetStore.create(path, manifest)
        done = running.run(
            target,
            tasks,
            engine.value,
            settings.workers,
            settings.gate,
            _say,
            address=ray_address,
            find_batch_size=batch_size == "auto",
        )
    _say_done(target, done)
    _say_lost(target, tasks)
    typer.echo(f"{path} is complete" if done else f"{path} was complete already")


@app.command()
def plan(
    dataset: DatasetOption,
    config: ConfigOption = None,
    data_root: RootOption = None,
    store: StoreOption = None,
    views: ViewsOption = None,
    batch_size: BatchOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time some batches here, and print how long the whole will take.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="With --calibrate: on how many of them, too.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Print rows, shards and bytes that `precompute` would write, and what is there already."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a plan fetches nothing
    from contract.errors import ConfigError, StoreError
    from pipeline import plan as planning

    if gpus is not None and not calibrate:
        raise ConfigError(f"--gpus {gpus}: only --calibrate says how long a run takes; add it")
    if calibrate and batch_size == "auto":
        raise ConfigError(
            "--batch-size auto: a plan tries none; give a number, or leave it to `pipeline precompute`"
        )
    settings, manifest, path = _inputs(dataset, config, data_root, store, views, set_)
    tasks = planning.make(
        settings, manifest, path, command=_command(), needs_weights=calibrate, batch_size=batch_size
    )
    typer.echo(planning.table(tasks, path))
    _say_notes(tasks)
    planning.check_disk_space(tasks, path)
    if calibrate:
        from pipeline import calibrate as calibrating

        left = [task for task in tasks if task.missing]
        try:
            found = [calibrating.measure(task, manifest, path, settings.workers, _say) for task in left]
        except KeyboardInterrupt:
            raise StoreError("interrupted; nothing was written") from None
        for task, calibration in zip(left, found, strict=True):
            calibrating.keep(manifest.dataset, task, calibration)
        typer.echo(calibrating.table(left, found, gpus) if left else "nothing is left to compute")


@app.command()
def manifest(
    dataset: Annotated[str, typer.Argument(help="Name of a dataset (coco, esc50...), or a YAML file like it.")],
    data_root: RootOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for what is found; default: manifests/<dataset>."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that read files; default: one a core.")
    ] = None,
) -> None:
    """Read a dataset and decode every file of it once; says what is missing, broken, repeated or leaks."""
    from contract.errors import DataError
    from pipeline import datasets
    from pipeline.checking.check import check

    described = datasets.load(dataset)
    folder = out or Path("manifests") / described.name
    num_workers = workers or os.cpu_count() or 1
    try:
        check(described, datasets.locate(described, data_root), folder, num_workers, typer.echo)
    except KeyboardInterrupt:
        raise DataError("interrupted; the same command continues where it stopped") from None


@app.command()
def show(store: StoreArgument) -> None:
    """Print what a store holds: items, fields, provenance, quarantined inputs."""
    from contract.storage import store_path
    from contract.store import TargetStore
    from pipeline import show as showing

    typer.echo(showing.describe(TargetStore.open(store_path(store))))


@app.command()
def verify(store: StoreArgument) -> None:
    """Read every byte of a store again and compare it with its checksums."""
    from contract.storage import store_path
    from pipeline import show as showing

    typer.echo(showing.verify(store_path(store)))


@app.command()
def repair(
    store: StoreArgument,
    engine: EngineOption = Engine.ray,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Call the functions of one's own encoders, which the store names.")
    ] = False,
) -> None:
    """Restore damaged metadata from their copies, and compute damaged or missing shards again."""
    from contract.storage import store_path
    from contract.store import writing
    from pipeline import precompute as running
    from pipeline import repair as repairing
    from pipeline.settings import Gate, Workers

    path = store_path(store)
    with writing(path):
        target = repairing.mend_metadata(path, _say)
        tasks = repairing.tasks(target, _say, run_code=run_code)
        done = running.run(target, tasks, engine.value, Workers(), Gate(num_samples=0), _say)
    _say_done(target, done)
    _say_lost(target, tasks)
    typer.echo(f"{path} is whole")


@app.command()
def export(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(help="The HDF5 file to write, such as scenes.h5; it must not exist.")],
) -> None:
    """Write a complete store as one HDF5 file (docs/hdf5.md)."""
    from contract.errors import StoreError
    from contract.storage import store_path
    from contract.store import TargetStore
    from pipeline.hdf5 import export as exporting

    try:
        typer.echo(exporting.export(TargetStore.open(store_path(store)), file))
    except KeyboardInterrupt:
        raise StoreError(f"interrupted; {file} was not written") from None


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An HDF5 file: what `export` wrote, or any dump of features.")],
    store: StoreOption = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Which dataset is what, such as image/id=names image/teacher/features=feats text/text=captions "
            "pairs/image-text=index, a --map each; not needed for what `export` wrote.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="What to call the dataset; default: as the file does.")
    ] = None,
) -> None:
    """Make a store of an HDF5 file (docs/hdf5.md); continues an import that was interrupted."""
    from contract.errors import StoreError
    from contract.storage import store_path
    from pipeline.hdf5 import contents, import_

    names = contents.parse_names(map_ or ())
    name = dataset or contents.dataset_name(file)
    path = store_path(store) if store else STORES / f"{name}.zarr"
    try:
        done = import_.import_(file, path, names, name, command=_command(), say=lambda line: _say(f"note: {line}"))
    except KeyboardInterrupt:
        raise StoreError("interrupted; the same command continues where it stopped") from None
    typer.echo(f"{path} is complete" if done.num_rows else f"{path} was complete already")


def _inputs(
    dataset: str,
    config: str | None,
    data_root: Path | None,
    store: str | None,
    views: int | None,
    overrides: list[str] | None,
) -> tuple[Precompute, Manifest, StorePath]:
    from contract import config as configs
    from contract.storage import store_path
    from pipeline import datasets
    from pipeline.settings import Precompute

    described = datasets.load(dataset)
    changes = [*(overrides or ()), *([f"views.num={views}"] if views is not None else [])]
    settings = configs.load(configs.find("configs/pipeline", config or described.name), Precompute, changes)
    root = datasets.locate(described, data_root)
    manifest = described.build(root, lambda line: _say(f"note: {line}"))
    for line in (*described.count_differences(manifest), *described.hash_differences(root)):
        _say(f"note: {line}")
    return settings, manifest, store_path(store) if store else STORES / f"{described.name}.zarr"


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _say_notes(tasks: list[Task]) -> None:
    for task in tasks:
        for line in task.encoder.notes():
            _say(f"note: {task.fieldset.key}: {line}")


def _say_done(target: TargetStore, done: list[Done]) -> None:
    from pipeline import calibrate

    for entry in done:
        key, num_rows = entry.task.fieldset.key, entry.task.missing_rows
        speed = num_rows / entry.elapsed_s
        typer.echo(
            f"{key}: {num_rows:,} rows in {entry.elapsed_s:.1f} s, {speed:,.0f} rows/s, {entry.timing.describe()}"
        )
        compared = calibrate.compared(target.manifest.dataset, entry)
        if compared is not None:
            typer.echo(compared)


def _say_lost(target: TargetStore, tasks: list[Task]) -> None:
    for task in tasks:
        for name, count in target.losses(task.fieldset.key)[1].items():
            typer.echo(
                f"{task.fieldset.key}/{name}: {count:,} values lay beyond what was calibrated, and were clipped"
            )
        entries = target.quarantined(task.fieldset.key)
        if entries:
            first = entries[0]
            typer.echo(
                f"{task.fieldset.key}: {len(entries):,} inputs could not be decoded and are left out of training "
                f"and evaluation, such as {first.file or first.id} ({first.reason}); "
                f"`pipeline show {target.path}` lists them"
            )


def _command() -> str:
    return shlex.join(["pipeline", *sys.argv[1:]])
