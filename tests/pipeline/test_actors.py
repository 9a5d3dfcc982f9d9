"""Ray's own cluster of several nodes, on this machine: decoders on one kind of node, teachers on another."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.errors import StoreError
from contract.store import TargetStore
from pipeline import actors
from pipeline.timing import Progress

WORKERS = (
    "workers.actors=2",
    "workers.decoders=2",
    "workers.resources.teacher.num_gpus=1",
    "workers.resources.decoder.num_cpus=0.5",
    "workers.resources.decoder.custom.decoding=1",
)
# How soon Ray knows that a node is gone.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that does nothing, two nodes with a GPU each (in name), and two that decode."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.teaching = [made.add_node(wait=False, num_cpus=1, num_gpus=1) for _ in range(2)]
    made.decoding = [made.add_node(wait=False, num_cpus=2, num_gpus=0, resources={"decoding": 2}) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def test_teachers_and_decoders_work_where_the_resources_are_and_nodes_may_be_lost(large, cluster) -> None:
    """A teacher and a decoder die while the run goes on: the others take what they had."""
    settings = [part for setting in WORKERS for part in ("--set", setting)]
    killer = threading.Thread(target=_kill_when_begun, args=(large, cluster))
    killer.start()
    outcome = large.call(*large.arguments("--engine", "ray", "--ray-address", cluster.address, *settings))
    killer.join()
    assert outcome.exit_code == 0, outcome.err
    assert f"{cluster.address}: teachers: 2 on 2 nodes, decoders: 2 on 2 nodes" in outcome.err
    assert "note: a teacher was lost with its process or its node; teachers left: 1" in outcome.err

    found, whole = large.opened(), TargetStore.open(large.folder / "whole.zarr")
    assert found.complete("image/teacher")
    assert found.complete("text/tokens")
    for name in ("features", "logits"):
        values = (store.load(f"image/teacher/{name}", range(600)) for store in (found, whole))
        np.testing.assert_allclose(*values, atol=2e-3)
    assert found.quarantined("image/teacher") == whole.quarantined("image/teacher")


def _kill_when_begun(large: Any, cluster: Any) -> None:
    """One node of each kind, once the first file of a shard is being written: others are in the making then.

    The teacher's first, which has little left to do by the time that the other is gone.
    """
    deadline = time.monotonic() + 300
    shards = large.store / "image/teacher/patch_embeddings/c"
    while not shards.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    cluster.remove_node(cluster.teaching[0], allow_graceful=False)
    cluster.remove_node(cluster.decoding[0], allow_graceful=False)


def test_batch_of_a_decoder_that_cannot_be_reached_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def get(reference: int, timeout: float) -> str:
        if reference < 3:
            raise ray.exceptions.ActorUnavailableError("its node is gone", None)
        return "decoded"

    asked: list[int] = []
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(actors, "ASK_AGAIN_S", 0.01)
    coming = actors._Coming(lambda: asked.append(len(asked)) or len(asked))
    assert coming.result() == "decoded"
    assert asked == [0, 1, 2]
    monkeypatch.setattr(actors, "DECODER_TIMEOUT_S", 0.2)
    with pytest.raises(StoreError, match="no decoder has answered for"):
        actors._Coming(lambda: 0).result()


@pytest.mark.parametrize(
    ("num_failing", "expected"), [(2, None), (99, "3 times no teacher came to a shard of image/t")]
)
def test_shards_of_a_teacher_that_reached_nobody_are_given_out_again(
    monkeypatch: pytest.MonkeyPatch, num_failing: int, expected: str | None
) -> None:
    import ray

    left, rounds = [3, 4], []

    def get(_: object) -> Progress:
        rounds.append(1)
        if len(rounds) <= num_failing:
            unreachable = ray.exceptions.ActorUnavailableError("its node is gone", None)
            raise ray.exceptions.RayTaskError("compute", "", unreachable).as_instanceof_cause()
        return Progress(num_rows=left.pop(0))

    teacher = SimpleNamespace(compute=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=streamed)))

    def streamed(_: object, shards: list[int]) -> Iterator[int]:
        return iter(shards[:1])

    crew = object.__new__(actors._Actors)
    crew._teachers, crew._path = [teacher], "somewhere"
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda streams, num_returns: (streams[:1], streams[1:]))
    monkeypatch.setattr(actors, "ASK_AGAIN_S", 0)
    monkeypatch.setattr(actors, "ROUNDS_WITHOUT_SHARDS", 3)
    monkeypatch.setattr(actors, "_light", lambda task: task)
    monkeypatch.setattr(actors.TargetStore, "open", lambda path: SimpleNamespace(missing=lambda key: tuple(left)))
    task: Any = SimpleNamespace(shards=tuple(left), fieldset=SimpleNamespace(key="image/teacher"))
    if expected is not None:
        with pytest.raises(StoreError, match=expected):
            list(crew.compute(task))
        return
    progresses = list(crew.compute(task))
    (note,) = progresses[0].notes
    assert note.startswith("a teacher could not reach another actor: ")
    assert "its node is gone" in note
    assert sum(progress.num_rows for progress in progresses) == 7


@pytest.mark.timeout(60)
def test_address_without_a_cluster_is_one_line_at_once(project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        for address, told in (
            ("127.0.0.1:1", "Connection refused"),
            ("nowhere.invalid:6379", "not known"),
            ("anything", "Invalid address"),
            (silent, "timed out"),
        ):
            message = project.error_of(*project.arguments("--engine", "ray", "--ray-address", address))
            assert f"--ray-address {address}: no Ray cluster can be joined there: " in message
            assert told in message
    assert not list((project.store / "precept/commits").rglob("*.json"))


@pytest.mark.timeout(60)
def test_a_server_that_is_not_ray_is_one_line(project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server = threading.Thread(target=answer)
        server.start()
        message = project.error_of(*project.arguments("--engine", "ray", "--ray-address", address))
        server.join()
    assert f"--ray-address {address}: no Ray cluster can be joined there: what listens there is not Ray" in message


def test_local_engine_asks_for_no_cluster(project) -> None:
    message = project.error_of(*project.arguments("--ray-address", "auto"))
    assert "--ray-address auto: --engine local asks for no Ray; leave one of them out" in message
