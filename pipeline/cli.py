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
    from contract.store import TargetStore
    from pipeline.plan import Task
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
StoreOption = Annotated[Path | None, typer.Option("--store", help="The store; default: stores/<dataset>.zarr.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting, such as encoders.image.teacher.batch_size=32.")
]
StoreArgument = Annotated[Path, typer.Argument(help="A store, such as stores/scenes.zarr.")]


@app.command()
def precompute(
    dataset: DatasetOption,
    config: ConfigOption = None,
    data_root: RootOption = None,
    store: StoreOption = None,
    engine: Annotated[Engine, typer.Option(help="Ray's actors, or this process.")] = Engine.ray,
    set_: SetOption = None,
) -> None:
    """Compute and store patch embeddings and soft targets; continues a run that was interrupted."""
    from contract.errors import StoreError
    from contract.store import TargetStore, writing
    from pipeline import plan as planning
    from pipeline import precompute as running

    settings, manifest, path = _inputs(dataset, config, data_root, store, set_)
    with writing(path):
        tasks = planning.make(settings, manifest, path, command=_command())
        planning.check_disk_space(tasks, path)
        typer.echo(planning.table(tasks, path), err=True)
        target = TargetStore.create(path, manifest)
        try:
            done = running.run(target, tasks, engine.value, settings.workers)
        except KeyboardInterrupt:
            raise StoreError("interrupted; the same command continues where it stopped") from None
    for entry in done:
        speed = entry.num_rows / entry.elapsed_s
        typer.echo(f"{entry.key}: {entry.num_rows:,} rows in {entry.elapsed_s:.1f} s, {speed:,.0f} rows/s")
    _say_quarantined(target, tasks)
    typer.echo(f"{path} is complete" if done else f"{path} was complete already")


@app.command()
def plan(
    dataset: DatasetOption,
    config: ConfigOption = None,
    data_root: RootOption = None,
    store: StoreOption = None,
    set_: SetOption = None,
) -> None:
    """Print rows, shards and bytes that `precompute` would write, and what is there already."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a plan fetches nothing
    from pipeline import plan as planning

    settings, manifest, path = _inputs(dataset, config, data_root, store, set_)
    tasks = planning.make(settings, manifest, path, command=_command(), needs_weights=False)
    typer.echo(planning.table(tasks, path))
    planning.check_disk_space(tasks, path)


@app.command()
def show(store: StoreArgument) -> None:
    """Print what a store holds: items, fields, provenance, quarantined inputs."""
    from contract.store import TargetStore
    from pipeline import show as showing

    typer.echo(showing.describe(TargetStore.open(store)))


@app.command()
def verify(store: StoreArgument) -> None:
    """Read every byte of a store again and compare it with its checksums."""
    from contract.store import TargetStore
    from pipeline import show as showing

    typer.echo(showing.verify(TargetStore.open(store)))


def _inputs(
    dataset: str, config: str | None, data_root: Path | None, store: Path | None, overrides: list[str] | None
) -> tuple[Precompute, Manifest, Path]:
    from contract import config as configs
    from pipeline import datasets
    from pipeline.settings import Precompute

    described = datasets.load(dataset)
    settings = configs.load(configs.find("configs/pipeline", config or described.name), Precompute, overrides or ())
    manifest = described.build(datasets.locate(described, data_root))
    for line in described.count_differences(manifest):
        typer.echo(f"note: {line}", err=True)
    return settings, manifest, store or STORES / f"{described.name}.zarr"


def _say_quarantined(target: TargetStore, tasks: list[Task]) -> None:
    for task in tasks:
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
