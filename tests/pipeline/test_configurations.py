"""Every shipped configuration and data manifest loads."""

from pathlib import Path

import pytest

from contract import config
from pipeline.datasets import Dataset
from pipeline.settings import Precompute

FILES = sorted((config.SHIPPED / "configs/pipeline").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pipeline_configuration_loads_and_survives_a_dump(path: Path, tmp_path: Path) -> None:
    settings = config.load(path, Precompute)
    assert list(settings.encoders)
    (tmp_path / "dumped.yaml").write_text(config.dump(settings))
    assert config.load(tmp_path / "dumped.yaml", Precompute) == settings


@pytest.mark.parametrize(
    "path", sorted((config.SHIPPED / "data_manifests").glob("*.yaml")), ids=lambda path: path.stem
)
def test_data_manifest_loads_and_has_a_configuration(path: Path) -> None:
    dataset = config.load(path, Dataset)
    assert dataset.name == path.stem
    assert dataset.licence
    assert path.stem in {file.stem for file in FILES}
