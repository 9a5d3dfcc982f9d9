from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from contract import config
from contract.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Narrow:
    kind: Literal["narrow"] = "narrow"
    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Fast:
    kind: Literal["fast"] = "fast"
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str
    part: Annotated[Narrow | Fast, Field(discriminator="kind")]
    sizes: tuple[int, ...] = (1, 2)
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    others: dict[str, Annotated[Narrow | Fast, Field(discriminator="kind")]] = field(default_factory=dict)
    runs: Literal["auto"] | tuple[Narrow, ...] = "auto"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(written(tmp_path, text), Settings, overrides)
    message = str(caught.value)
    assert "settings.yaml" in message or "--set" in message
    return message


def test_dumped_config_loads_to_an_equal_one(tmp_path: Path) -> None:
    settings = Settings(name="a", part=Fast(rate=0.5), sizes=(3,), folder=Path("x/y"), weights={"kd": 1e-3})
    assert config.load(written(tmp_path, config.dump(settings)), Settings) == settings


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    settings = config.load(written(tmp_path, "name: no\npart: {kind: fast, rate: 1e-3}\n"), Settings)
    assert settings.name == "no"
    assert settings.part == Fast(rate=0.001)


def test_overrides_change_nested_values(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a\npart: {kind: narrow}\n")
    settings = config.load(path, Settings, ["part.width=7", "sizes=[4, 6]", "sizes.1=5", "weights.kd=2"])
    assert settings.part == Narrow(width=7)
    assert settings.sizes == (4, 5)
    assert settings.weights == {"kd": 2.0}


def test_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    message = error_of(tmp_path, "name: a\npart: {kind: narrow, widht: 4}\n")
    assert "unknown key `part.widht`; did you mean `width`?" in message


def test_misspelt_required_key_is_named_before_the_missing_one(tmp_path: Path) -> None:
    assert "unknown key `nmae`; did you mean `name`?" in error_of(tmp_path, "nmae: a\npart: {kind: narrow}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\npart: {kind: narrow, width: '4'}\n", '`part.width`: input should be a valid integer, found "4"'),
        (
            "name: a\npart: {kind: narrow, width: true}\n",
            "`part.width`: input should be a valid integer, found true",
        ),
        ("name: a\npart: {kind: narrow, width: 1.5}\n", "`part.width`"),
        ("name: 1\npart: {kind: narrow}\n", "`name`: input should be a valid string, found 1"),
        ("name: a\npart: {kind: wide}\n", "'narrow', 'fast'"),
        ("part: {kind: narrow}\n", "key `name` is missing"),
        ("- a\n", "expected `key: value` lines, found list"),
        ("name: [a\n", "not YAML"),
        ("name: a\nname: b\npart: {kind: narrow}\n", "not YAML"),
        ("name: 2020-01-01\npart: {kind: narrow}\n", "put quotes around dates"),
        ("", "expected `key: value` lines"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_of(tmp_path, text)


def test_misspelt_name_of_an_override_is_told_from_those_that_there_are(tmp_path: Path) -> None:
    text = "name: a\npart: {kind: narrow}\nothers: {sentence: {kind: fast}, words: {kind: fast}}\n"
    message = error_of(tmp_path, text, "others.sentense.rate=0.0")
    assert "key `others.sentense.kind` is missing; did you mean `others.sentence`?" in message


def test_keys_are_the_users_own_below_a_choice_of_types(tmp_path: Path) -> None:
    message = error_of(tmp_path, "name: a\npart: {kind: narrow}\nruns: [{width: 1}, {kin: narrow}]\n")
    assert "unknown key `runs.1.kin`; did you mean `kind`?" in message
    assert "`runs`: " in error_of(tmp_path, "name: a\npart: {kind: narrow}\nruns: 3\n")


@pytest.mark.parametrize("override", ["name", "=3", "a..b=1", "name.inner=1", "sizes.2=1", "sizes.x=1"])
def test_override_that_makes_no_sense_is_refused(tmp_path: Path, override: str) -> None:
    error_of(tmp_path, "name: a\npart: {kind: narrow}\nsizes: [1, 2]\n", override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", r"c\.yaml: line 2: no aliases; write out \*a"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n", "line 3: no aliases"),
        ("a: &a [*a]", "line 1: no aliases"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "9" * 6000, "not YAML: Exceeds the limit"),
        ("a: 2020-02-31", "not YAML: day is out of range"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
    ],
)
def test_yaml_that_could_do_harm_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        config.read_tree(path)


def test_asterisk_in_a_text_is_no_alias(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 2 * 3\nb: '*x'\n")
    assert config.read_tree(path) == {"a": "2 * 3", "b": "*x"}


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: can't be read"):
        config.load(tmp_path / "nothing.yaml", Settings)


def test_shipped_names_are_listed_when_one_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"there are: .*scenes.*did you mean `scenes`"):
        config.shipped("configs/pipeline", "scene")
