"""Load, parse and dump configurations: the only place that knows YAML and pydantic.

A configuration is a frozen dataclass owned by the file that uses it. YAML is read as version 1.2 (`1e-3` is
a number, `no` is a string), and validated strictly: nothing is coerced and no unknown key is let through.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contract.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")
Tree = dict[str, Any]

# Configurations and dataset manifests lie beside the packages, in the repository as in an installed wheel.
SHIPPED = Path(__file__).resolve().parent.parent


def load(path: Path, type_: type[T], overrides: Iterable[str] = ()) -> T:
    """Read the YAML file `path` into `type_`, after the `a.b=value` overrides have been put in."""
    overrides = list(overrides)
    return parse(read_tree(path, overrides), type_, source=str(path), overrides=overrides)


def read_tree(path: Path, overrides: Iterable[str] = ()) -> Tree:
    """The YAML file `path` as a tree of dicts, lists and scalars, with the overrides put in."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    tree = _yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(tree).__name__}")
    for override in overrides:
        _put(tree, override)
    return tree


def parse(tree: object, type_: type[T], *, source: str, overrides: Iterable[str] = ()) -> T:
    """Validate `tree` as `type_`; the error names `source`, the key, what was found and what was expected.

    A key that one of `overrides` has put there is blamed on that one.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # In pydantic's strict mode only JSON input may give tuples and paths; it still refuses "1" for 1.
        return TypeAdapter(type_).validate_json(json.dumps(tree), strict=True, extra="forbid")
    except ValidationError as error:
        # An unknown key is often the misspelt one that another line misses: say it first.
        problems = sorted(error.errors(include_url=False), key=lambda problem: not _is_unknown_key(problem))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        key = ".".join(_keys(problems[0]["loc"], tree))
        to_blame = [f"--set {one}" for one in overrides if f"{key}.".startswith(f"{one.partition('=')[0]}.")]
        culprit = to_blame[-1] if to_blame else source
        raise ConfigError(f"{culprit}: {_describe(problems[0], key, type_, tree)}{more}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}; put quotes around dates and other special values") from error


def tree(config: object) -> Tree:
    """A configuration as a plain tree, `kind`s included, ready for JSON."""
    from pydantic import TypeAdapter

    dumped: Tree = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped


def dump(config: object) -> str:
    """A configuration as YAML that `load` reads back to an equal one."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    yaml.dump(tree(config), text)
    return text.getvalue()


def shipped(folder: str, name: str) -> Path:
    """The shipped YAML `folder`/`name`.yaml, such as ("configs/trainer", "shre")."""
    path = SHIPPED / folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (SHIPPED / folder).glob("*.yaml"))
        raise ConfigError(f"no {folder}/{name}.yaml; there are: {', '.join(known)}{_nearest(name, known)}")
    return path


def find(folder: str, name_or_path: str) -> Path:
    """A user's own file when that is what `name_or_path` is, or the shipped one of that name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"{path}: no such file")
    return shipped(folder, name_or_path)


def _yaml(text: str, source: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    try:
        # Nine lines of aliases to one another stand for gigabytes.
        for event in YAML(typ="safe", pure=True).parse(text) if "*" in text else ():
            if isinstance(event, AliasEvent):
                raise ConfigError(
                    f"{source}: line {event.start_mark.line + 1}: no aliases; write out *{event.anchor}"
                )
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:  # ValueError for 31 February, or a number of thousands of digits
        raise ConfigError(f"{source}: not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: its lists or keys are nested too deeply") from error


def _put(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: expected a.b=value")
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        place = _place(node, parent, override)
        if isinstance(node, dict) and node.get(place) is None:
            node[place] = {}
        node = node[place]
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: `{parent}` holds a value, not keys")
    node[_place(node, last, override)] = _yaml(text, f"--set {override}")


def _place(node: Tree | list[Any], key: str, override: str) -> Any:
    """A key of a tree, or the number of a list's item."""
    if isinstance(node, dict):
        return key
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"--set {override}: `{key}` is no item of a list, which are 0 to {len(node) - 1}")
    return int(key)


def _is_unknown_key(problem: ErrorDetails) -> bool:
    return problem["type"] in ("unexpected_keyword_argument", "extra_forbidden")


def _describe(problem: ErrorDetails, key: str, type_: object, tree: object) -> str:
    key = key or "the file"
    found = json.dumps(problem["input"], default=str)
    found = found if len(found) <= 60 else found[:57] + "..."
    if _is_unknown_key(problem):
        return f"unknown key `{key}`{_nearest(str(problem['loc'][-1]), _key_names(type_))}"
    match problem["type"]:
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return f"key `{key}` is missing"
        case "union_tag_not_found":
            # A misspelt name in --set a.NAME.b=value makes a new one, of no kind.
            return f"key `{key}.kind` is missing{_nearest(key, _beside(problem['loc'], tree))}"
        case "union_tag_invalid":
            return f"`{key}`: {problem['msg']}"
        case _:
            return f"`{key}`: {_lowered(problem['msg'])}, found {found}"


def _keys(location: tuple[int | str, ...], tree: object) -> list[str]:
    """The user's own keys in an error's location, without the `kind` or type that pydantic puts after a union's."""
    keys = []
    node: Any = tree
    for part in location:
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue
        if isinstance(part, str) and node is not tree and not isinstance(node, dict):
            continue
        keys.append(str(part))
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
    return keys


def _beside(location: tuple[int | str, ...], tree: object) -> list[str]:
    """Keys that lie beside the last one of an error's location, from the top."""
    *above, _ = _keys(location, tree)
    node: Any = tree
    for key in above:
        node = node[int(key)] if isinstance(node, list) else node[key]
    return [".".join((*above, str(key))) for key in node] if isinstance(node, dict) else []


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _key_names(type_: object) -> set[str]:
    """The names of every key that stands anywhere in a configuration type."""
    names: set[str] = set()
    seen: set[object] = set()
    waiting = [type_]
    while waiting:
        current = waiting.pop()
        if isinstance(current, type) and dataclasses.is_dataclass(current) and current not in seen:
            seen.add(current)
            hints = _type_hints(current)
            names.update(field.name for field in dataclasses.fields(current))
            waiting.extend(hints.values())
        waiting.extend(getattr(current, "__args__", ()))
    return names


def _type_hints(dataclass_: type) -> Mapping[str, Any]:
    from typing import get_type_hints

    return get_type_hints(dataclass_, include_extras=True)
