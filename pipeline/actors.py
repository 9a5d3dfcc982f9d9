"""Ray's actors: teachers, one a GPU, and decoders that feed them from other nodes, if there are any.

Every actor opens the store by its path, and whoever decodes the dataset's files: on a cluster, both lie where all
nodes see them, on a shared file system or, the store, at a URL.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from contract.errors import ConfigError, StoreError, UserError
from contract.manifest import Rows
from contract.storage import StorePath
from contract.store import TargetStore
from contract.views import View
from pipeline.decoding import BATCHES_AHEAD, Decoded, Decoder, Pending
from pipeline.plan import Task
from pipeline.precompute import Crew, Here
from pipeline.settings import Share, Views, Workers
from pipeline.timing import Progress
from pipeline.worker import ShardWorker

CONNECT_TIMEOUT_S = 5
# How both sides of HTTP/2, which gRPC speaks, begin; the client's has a preface.
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Ray starts a lost decoder again as soon as a node has room for it, and waits for one for ever.
DECODER_TIMEOUT_S = 600
ASK_AGAIN_S = 1
# So often in a row may teachers come to no shard, since what they ask is out of reach.
ROUNDS_WITHOUT_SHARDS = 10
# Ray itself counts in ten-thousandths of a GPU.
SLACK = 1e-4


@contextmanager
def hired(
    store: TargetStore, tasks: Sequence[Task], workers: Workers, address: str | None, say: Callable[[str], None]
) -> Iterator[Crew]:
    """Teachers and decoders: on the cluster at `address`, in the session there is, or in one of our own."""
    import ray

    own = not ray.is_initialized()
    if own:
        _start(address)
    crew = None
    try:
        crew = _Actors(store, tasks, workers, say)
        if address is not None:
            say(f"{address}: {crew.describe()}")
        yield crew
    finally:
        if crew is not None:
            crew.dismiss()
        if own:
            ray.shutdown()


def _start(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ray has its processes give way to all others (niceness 15); the run is what was asked for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    try:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if port.isdecimal():
            _require_server(host.strip("[]"), int(port))
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError and more
        raise ConfigError(f"--ray-address {address}: no Ray cluster can be joined there: {_line(error)}") from error


def _require_server(host: str, port: int) -> None:
    """Raise `OSError` unless something that may be Ray answers: Ray itself would ask for a quarter of an hour."""
    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as connection:
        connection.sendall(PREFACE + SETTINGS)
        answer = connection.makefile("rb").read(len(SETTINGS))
    if answer[3:5] != SETTINGS[3:5]:
        raise ConnectionError("what listens there is not Ray")


class _Actors:
    """Teachers take the next shard when they are done; one that is lost leaves its shard to the others."""

    def __init__(
        self, store: TargetStore, tasks: Sequence[Task], workers: Workers, say: Callable[[str], None]
    ) -> None:
        import ray

        self._say = say
        self._queue: Any = None
        self._path = store.path if isinstance(store.path, str) else store.path.resolve()
        cluster = ray.cluster_resources()
        teacher, decoder = workers.resources.teacher, workers.resources.decoder
        num_gpus = cluster.get("GPU", 0)
        fitting = max(1, int(num_gpus / (teacher.num_gpus or 1)))
        num_teachers = min(workers.actors or fitting, max(len(task.missing) for task in tasks))
        if teacher.num_gpus is None:  # more teachers than GPUs share them evenly
            teacher = replace(teacher, num_gpus=1 / math.ceil(num_teachers / num_gpus) if num_gpus else 0)
        if decoder.num_cpus is None:
            decoder = replace(decoder, num_cpus=1)
        _require_room({"teacher": (num_teachers, teacher), "decoder": (workers.decoders, decoder)})
        num_threads = int(teacher.num_cpus or 0) or max(1, int(cluster.get("CPU", 1)) // num_teachers)
        self._decoders = self._hire_decoders(workers, decoder)
        self._teachers = self._hire_teachers(num_teachers, workers, teacher, num_threads)

    def prepare(self, task: Task) -> int:
        """Have every teacher that there is a shard for load the encoder; on how many devices they are."""
        import ray

        teachers = self._teachers[: len(task.missing)]
        loading = [(teacher, teacher.ready.remote(_light(task))) for teacher in teachers]
        devices: set[tuple[str, str]] = set()
        with _translated():
            for teacher, ready in loading:
                try:
                    devices.update(ray.get(ready))
                except ray.exceptions.RayTaskError:
                    raise  # what went wrong inside, whatever Ray lets it pass for
                except ray.exceptions.RayActorError:
                    self._say(f"note: {self._without(teacher)}")
        return len(devices)

    def ask(self, task: Task, what: str, *arguments: Any) -> Any:
        """The result of one teacher's method `what`."""
        import ray

        with _translated():
            return ray.get(self._teachers[0].ask.remote(_light(task), what, *arguments))

    def compute(self, task: Task) -> Generator[Progress]:
        """Compute every missing shard, with as many teachers as are left."""
        shards, num_fruitless = task.shards, 0
        while shards:
            if not self._teachers:
                raise StoreError(
                    f"no teacher is left, {len(shards)} shards before the end of {task.fieldset.key}; the same "
                    "command continues the run"
                )
            with closing(self._round(task, shards)) as progresses:
                yield from progresses
            left = TargetStore.open(self._path).missing(task.fieldset.key)
            num_fruitless = num_fruitless + 1 if len(left) == len(shards) else 0
            if num_fruitless == ROUNDS_WITHOUT_SHARDS:
                raise StoreError(
                    f"{num_fruitless} times no teacher came to a shard of {task.fieldset.key}, for what it asks is "
                    "out of reach; look at the nodes of the cluster; the same command continues the run"
                )
            if num_fruitless:
                time.sleep(ASK_AGAIN_S)
            shards = left

    def describe(self) -> str:
        """Who works where, in words."""
        import ray

        parts = []
        with _translated():
            for name, actors in (("teachers", self._teachers), ("decoders", self._decoders)):
                nodes = set(ray.get([actor.node.remote() for actor in actors]))
                parts += [f"{name}: {len(actors)} on {len(nodes)} nodes"] if actors else []
        return ", ".join(parts)

    def dismiss(self) -> None:
        """End the actors, also in a session that goes on."""
        import ray

        for actor in (*self._teachers, *self._decoders, *([self._queue] if self._queue else [])):
            ray.kill(actor)

    def _round(self, task: Task, shards: Sequence[int]) -> Generator[Progress]:
        """What happens until every teacher has found no further shard, or was lost."""
        import ray

        with _translated():
            source = self._given_out(shards)
        running = {
            teacher.compute.options(num_returns="streaming").remote(_light(task), source): teacher
            for teacher in self._teachers[: len(shards)]
        }
        with _translated():
            while running:
                ready, _ = ray.wait(list(running), num_returns=1)
                for stream in ready:
                    try:
                        yield ray.get(next(stream))
                    except StopIteration:
                        del running[stream]
                    except ray.exceptions.RayTaskError as error:
                        # What went wrong inside, whatever Ray lets it pass for; what it met may be a lost actor.
                        if not isinstance(error.cause, ray.exceptions.RayActorError):
                            raise
                        del running[stream]
                        yield Progress(notes=(f"a teacher could not reach another actor: {_line(error.cause)}",))
                    except ray.exceptions.RayActorError:
                        yield Progress(notes=(self._without(running.pop(stream)),))

    def _without(self, teacher: Any) -> str:
        """Go on without a teacher that was lost; what to say of it."""
        self._teachers.remove(teacher)
        return f"a teacher was lost with its process or its node; teachers left: {len(self._teachers)}"

    def _given_out(self, shards: Sequence[int]) -> Any:
        """Where teachers get their shards from: a single one has them all, several share a queue."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if len(self._teachers) == 1:
            return list(shards)
        if self._queue is None:
            # Beside the driver, without which nothing goes on: on another node, it would be lost with that.
            here = NodeAffinitySchedulingStrategy(_node(), soft=True)
            self._queue = ray.remote(num_cpus=0, scheduling_strategy=here)(_Queue).remote()
        ray.get(self._queue.fill.remote(shards))
        return self._queue

    def _hire_teachers(self, num_teachers: int, workers: Workers, share: Share, num_threads: int) -> list[Any]:
        import ray

        teacher = ray.remote(**_options(share))(_Teacher)
        folder, decoders = str(Path.cwd()), self._decoders
        return [
            # Every decoder feeds every teacher, and each teacher begins with another one.
            teacher.remote(folder, self._path, workers, num_threads, [*decoders[n:], *decoders[:n]])
            for n in range(num_teachers)
        ]

    def _hire_decoders(self, workers: Workers, share: Share) -> list[Any]:
        import ray

        num_threads = workers.decode_threads or max(1, int(share.num_cpus or 0))
        # Decoding has no state: Ray starts a lost decoder on another node and asks it again.
        decoder = ray.remote(max_restarts=-1, max_task_retries=-1, **_options(share))(_Decoders)
        return [decoder.remote(self._path, num_threads) for _ in range(workers.decoders)]


class _Teacher(Here):
    """A worker in a process of Ray's."""

    def __init__(
        self, folder: str, path: StorePath, workers: Workers, num_threads: int, decoders: Sequence[Any]
    ) -> None:
        import torch

        _settle_in(folder)
        # Ray gives a process one thread unless told otherwise.
        torch.set_num_threads(min(num_threads, os.cpu_count() or 1))
        super().__init__(path, workers)
        self._decoders = decoders

    def node(self) -> str:
        """The node that it is on."""
        return _node()

    def ready(self, task: Task) -> list[tuple[str, str]]:
        """Load the encoder; the devices that it is on: its node, and the numbers of its GPUs there or ""."""
        import ray

        self.prepare(task)
        return [(_node(), gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU") or [""]]

    def compute(self, task: Task, source: Any) -> Generator[Progress]:  # type: ignore[override]
        """Compute these shards, or those that a queue gives."""
        import ray

        shards = source if isinstance(source, list) else iter(lambda: ray.get(source.take.remote()), None)
        # Ray streams what a generator function yields, and looks at the method itself.
        yield from self.worker(task).compute(shards)

    def _hired(self, store: TargetStore, task: Task) -> ShardWorker:
        feeding = _Fed(self._decoders, task) if self._decoders else None
        return ShardWorker(store, task, self._workers, feeding)


class _Queue:
    """The shards that nobody has begun."""

    def __init__(self) -> None:
        self._shards: list[int] = []

    def fill(self, shards: Sequence[int]) -> None:
        """These are left."""
        self._shards = list(shards)

    def take(self) -> int | None:
        """The next one; None if there is none."""
        return self._shards.pop(0) if self._shards else None


class _Decoders:
    """Decodes for teachers elsewhere."""

    def __init__(self, path: StorePath, num_threads: int) -> None:
        self._manifest = TargetStore.open(path).manifest
        self._num_threads = num_threads
        self._known: dict[tuple[Any, ...], Decoder] = {}

    def node(self) -> str:
        """The node that it is on."""
        return _node()

    def decode(self, modality: str, view: View, views: Views, rows: range | Rows, num_views: int) -> Decoded:
        """Decode a batch."""
        key = (modality, view, views)
        if key not in self._known:
            self._known[key] = Decoder(self._manifest, modality, view, views, self._num_threads)
        return self._known[key].submit(rows, num_views).result()


class _Fed:
    """The decoders of a teacher, asked in turn."""

    def __init__(self, actors: Sequence[Any], task: Task) -> None:
        self._num_actors, self._turns = len(actors), itertools.cycle(actors)
        self._what = (task.fieldset.modality, task.encoder.view(), task.views)

    def num_ahead(self, rows_per_batch: int) -> int:
        """Some batches for each of them."""
        return BATCHES_AHEAD * self._num_actors

    def submit(self, rows: range | Rows, num_views: int) -> Pending:
        """Begin to decode a batch, on the next one."""
        return _Coming(lambda: next(self._turns).decode.remote(*self._what, rows, num_views))


class _Coming:
    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask, self._reference = ask, ask()

    def cancel(self) -> None:
        """The decoder is dismissed with the run."""

    def result(self) -> Decoded:
        """Wait for it; one that can't be reached, which Ray may not know for lost yet, leaves it to the next."""
        import ray

        deadline = time.monotonic() + DECODER_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                decoded: Decoded = ray.get(self._reference, timeout=left_s)
                return decoded
            except ray.exceptions.ActorUnavailableError:  # beyond what Ray tries again by itself
                time.sleep(ASK_AGAIN_S)
                self._reference = self._ask()
            except ray.exceptions.GetTimeoutError:
                break
        raise StoreError(
            f"no decoder has answered for {DECODER_TIMEOUT_S} s; look at the nodes of the cluster that "
            "workers.resources.decoder asks for; the same command continues the run"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _light(task: Task) -> Task:
    """The task as it travels: which shards are missing, the queue knows."""
    return replace(task, missing=())


def _settle_in(folder: str) -> None:
    """Relative paths and a user's own modules are those of the driver's folder, where this node sees it."""
    if Path(folder).is_dir():
        os.chdir(folder)
        sys.path.insert(0, folder)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _needs(share: Share) -> dict[str, float]:
    needed = {"CPU": share.num_cpus or 0, "GPU": share.num_gpus or 0, **share.custom}
    return {name: amount for name, amount in needed.items() if amount}


def _options(share: Share) -> dict[str, Any]:
    about = {"num_cpus": share.num_cpus or 0, "num_gpus": share.num_gpus or 0, "resources": share.custom}
    return {**about, "scheduling_strategy": "SPREAD"}


def _require_room(wanted: dict[str, tuple[int, Share]]) -> None:
    """Raise `ConfigError` for actors that no node has room for: Ray would wait for one without a word."""
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    needs = {name: _needs(share) for name, (_, share) in wanted.items()}
    # Those that fewer nodes can take choose first.
    for name in sorted(wanted, key=lambda name: sum(_has(node, needs[name]) for node in nodes)):
        count, needed = wanted[name][0], needs[name]
        for number in range(count):
            node = next((node for node in nodes if _has(node, needed)), None)
            if node is None:
                each = ", ".join(f"{resource} {amount:g}" for resource, amount in needed.items())
                raise ConfigError(
                    f"workers.resources.{name}: {count} with {each} each are wanted, and the nodes of this cluster "
                    f"have room for {number}; change that, workers.actors or workers.decoders"
                )
            for resource, amount in needed.items():
                node[resource] -= amount


def _has(node: dict[str, float], needed: dict[str, float]) -> bool:
    return all(node.get(resource, 0) > amount - SLACK for resource, amount in needed.items())


@contextmanager
def _translated() -> Iterator[None]:
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        # Ray wraps what an actor raised; the user's mistake inside is what the user should read.
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, UserError | OSError):
            raise cause from None
        if not isinstance(cause, ray.exceptions.RayError):
            raise
        lost = f"an actor was lost ({type(cause).__name__})"
        raise StoreError(f"{lost}; the same command continues the run") from error
