"""An S3 server on this machine, for the tests of remote stores: real requests over HTTP."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# An example takes as long as the machine lets it.
settings.register_profile("precept", deadline=None)
settings.load_profile("precept")

_clients_of: list[tuple[str, ...]] = []
REQUEST = re.compile(r'"(?:\x1b\[[0-9;]*m)*(GET|PUT|HEAD|POST|DELETE) (\S+)')


@dataclass(eq=False)
class Server:
    """moto's server, and what it has been asked for."""

    process: subprocess.Popen[bytes]
    endpoint: str
    log: Path
    read_bytes: int = 0

    def requests(self) -> Counter[str]:
        """The requests since the last call, by method; listings apart."""
        text = self.log.read_bytes()
        new, self.read_bytes = text[self.read_bytes :].decode(errors="replace"), len(text)
        found = [(match[1], match[2]) for match in REQUEST.finditer(new) if "/moto-api" not in match[2]]
        return Counter("LIST" if "list-type=2" in path else method for method, path in found)

    def ask_who_one_is(self, *, asks: bool) -> None:
        """Refuse keys that it does not know, and what their owners may not do."""
        url, headers = f"{self.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(url, b"0" if asks else b"inf", headers)):
            pass

    def client(self) -> Any:
        """The one that stores use, to do things behind their back."""
        from s3fs import S3FileSystem

        return S3FileSystem(use_listings_cache=False)

    def new_bucket(self) -> str:
        """The URL of a bucket that nobody has written to."""
        name = f"bucket-{secrets.token_hex(4)}"
        self.client().mkdir(name)
        return f"s3://{name}"

    def stop(self) -> None:
        """Kill it, as a machine dies."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_server(folder: Path) -> Server:
    """Start moto and wait until it answers."""
    for module in ("moto", "s3fs", "flask"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: the extra `dev` brings an S3 server and its client")
    port, log = free_port(), folder / "moto.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{server.endpoint}/moto-api/"):
                return server
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "moto_server does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests."""
    server = start_server(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture
def mortal_s3(tmp_path: Path, s3_environment: Callable[..., None]) -> Iterator[Server]:
    """A server of the test's own, which it may stop."""
    server = start_server(tmp_path)
    s3_environment(server)
    yield server
    server.stop()


@pytest.fixture
def s3_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Points this process and those it starts to a server, and to a cache of the test's own."""

    def point(server: Server, key: str = "key", secret: str = "secret") -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        settings = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "1",  # beside those of s3fs
            "NO_PROXY": "127.0.0.1",
            "PRECEPT_CACHE": str(tmp_path / "cache"),
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        _forget_clients_of_others(server.endpoint, key)

    return point


@pytest.fixture
def bucket(s3: Server, s3_environment: Callable[..., None]) -> str:
    """The URL of a new bucket."""
    s3_environment(s3)
    return s3.new_bucket()


def _forget_clients_of_others(*whose: str) -> None:
    """A client keeps the environment that it was made in; zarr-python's can't be closed, and is kept."""
    from s3fs import S3FileSystem

    if _clients_of != [whose]:
        for token, client in list(S3FileSystem._cache.items()):
            if not client.asynchronous:
                del S3FileSystem._cache[token]
    _clients_of[:] = [whose]
