"""The Ray cluster that runs are sent to: one that is there already, or this machine for as long as it takes."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract.errors import ConfigError, MissingExtraError

CONNECT_TIMEOUT_S = 5
# An empty SETTINGS frame of HTTP/2 (RFC 9113), which every server of gRPC answers with one of its own.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FOLLOW_S = 0.5


@contextmanager
def joined(address: str | None, *, least_cpus: int = 1) -> Iterator[dict[str, float]]:
    """Be connected to the cluster at `address`, or to one of this machine; what it has: {"CPU": 16, "GPU": 2, ..}.

    On this machine `least_cpus` workers find room, even where there are fewer cores.
    """
    try:
        import ray
        import ray.train.torch
        import ray.tune
    except ImportError as error:
        raise MissingExtraError(f"Ray Train and Ray Tune are not installed: {error}") from error
    own = not ray.is_initialized()
    if own:
        _start(address, least_cpus)
    try:
        yield dict(ray.cluster_resources())
    finally:
        if own:
            ray.shutdown()


@contextmanager
def followed(log: Path) -> Iterator[None]:
    """Show on stderr what other processes append to the file meanwhile."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(log, done), name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _start(address: str | None, least_cpus: int) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ray has its processes give way to all others (niceness 15); the run is what was asked for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        num_cpus = max(len(os.sched_getaffinity(0)), least_cpus)
        ray.init(address="local", include_dashboard=False, num_cpus=num_cpus, **quiet)
        return
    try:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if port.isdecimal():
            _require_server(host.strip("[]"), int(port))
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError and more
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--ray-address {address}: no Ray cluster can be joined there: {reason}") from error


def _require_server(host: str, port: int) -> None:
    """Raise `OSError` unless something that may be Ray answers: Ray itself would ask for a quarter of an hour."""
    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as connection:
        connection.sendall(PREFACE + SETTINGS)
        answer = connection.makefile("rb").read(len(SETTINGS))
    if answer[3:5] != SETTINGS[3:5]:
        raise ConnectionError("what listens there is not Ray")


def _follow(log: Path, done: threading.Event) -> None:
    shown = log.stat().st_size if log.exists() else 0
    last = False
    while not last:
        last = done.wait(FOLLOW_S)  # once more after the end, for the last lines
        if log.exists():
            with log.open("rb") as file:
                file.seek(shown)
                text = file.read()
            shown += len(text)
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()
