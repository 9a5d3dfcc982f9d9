from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from contract import config
from contract.errors import ConfigError
from trainer.objectives import Objective
from trainer.recipes import Recipe

SHIPPED = sorted((config.SHIPPED / "configs/trainer").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_loads_is_named_after_its_file_and_says_how_it_is_run(path: Path) -> None:
    recipe = config.load(path, Recipe)
    assert recipe.name == path.stem
    head = path.read_text().partition("\nname:")[0]
    assert "trainer run" in head
    assert "arXiv" in head


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_whole(path: Path) -> None:
    tree = config.read_tree(path)
    assert tree == config.tree(config.parse(tree, Recipe, source=str(path)))


def test_page_of_recipes_has_each_recipe_and_each_objective() -> None:
    page = (config.SHIPPED / "docs/recipes.md").read_text()
    kinds = [member.kind for member in get_args(get_args(Objective)[0])]
    for name in [path.stem for path in SHIPPED] + kinds:
        assert f"\n| `{name}` |" in page, name


def test_dumped_recipe_loads_to_an_equal_one(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(recipe()))
    assert config.load(path, Recipe) == recipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives.kd.temprature": 2.0}, "unknown key `objectives.kd.*temprature`.*temperature"),
        ({"epochs": "4"}, "epochs"),
        ({"epochs": 0}, "`epochs`: .*greater than or equal to 1"),
        ({"student.dropout": 1.5}, "dropout`: .*less than 1"),
        ({"objectives.kd.temperature": 0}, "temperature"),
        ({"batch_size": 1}, "batch_size"),
        ({"objectives": {}}, "objectives"),
        ({"objectives.kd.kind": "kd"}, "kd_kl"),
        ({"student.kind": "cnn"}, "transformer"),
        ({"validation": {"every_epochs": 0}}, "every_epochs"),
        ({"streams": [{"pair": "image-text", "weight": 0}]}, "weight"),
    ],
)
def test_wrong_recipe_is_refused_by_key(
    recipe: Callable[..., Recipe], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(changes)
