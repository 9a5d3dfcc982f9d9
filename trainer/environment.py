"""What a run was computed with: code, packages and machine, kept in RUN/environment.json."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from contract import config
from contract.errors import RunError
from contract.files import replace_file
from contract.schema import difference

Environment = dict[str, Any]

# Packages that compute: with another one of these a run may end in other last digits.
COMPUTING = ("torch", "numpy")
GIT_TIMEOUT_S = 20


def record(path: Path) -> None:
    """Append this process's environment to the file, unless it is the last one's; say if figures may differ."""
    known: list[Environment] = []
    try:
        if path.exists():
            known = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}; delete it: it is only a record") from error
    now = current()
    if known and (changed := difference(_computing(now), _computing(known[-1]))):
        print(f"warning: resumed in another environment: {changed}: the last digits may differ", file=sys.stderr)
    if not known or {**known[-1], "since": ""} != {**now, "since": ""}:
        replace_file(path, (json.dumps([*known, now], indent=1) + "\n").encode())


def current() -> Environment:
    """Of this process."""
    return {
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "precept": code(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "packages": dict(sorted({found.name: found.version for found in distributions()}.items())),
    }


def code() -> dict[str, Any]:
    """Precept's version, and of a checkout the commit and whether files differ from it."""
    found: dict[str, Any] = {"version": version("precept"), "commit": None, "changed": None}
    if (config.SHIPPED / ".git").exists():
        try:
            found["commit"] = _git("rev-parse", "HEAD")
            found["changed"] = bool(_git("status", "--porcelain"))
        except (OSError, subprocess.SubprocessError) as error:
            print(
                f"warning: {config.SHIPPED} is a checkout, but git does not tell of what: {error}", file=sys.stderr
            )
    return found


def _git(*arguments: str) -> str:
    # Without optional locks: looking must not get in the way of someone who works there.
    command = ["git", "--no-optional-locks", "-C", str(config.SHIPPED), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_S)
    return done.stdout.strip()


def _computing(environment: Mapping[str, Any]) -> Environment:
    """What decides last digits."""
    packages = {name: environment["packages"].get(name) for name in COMPUTING}
    parts = {name: environment[name] for name in ("cpu", "num_threads", "gpus", "cuda")}
    return {"precept": environment["precept"], **parts, **packages}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
