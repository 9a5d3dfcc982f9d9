import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from contract.errors import ConfigError, DataError
from contract.views import ImageView, Item
from encoders.image_processor import Preprocessing, Processing, read

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
NOTHING = Preprocessing()
# Name of the case -> class, its settings, and what the view should be.
PROCESSORS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {}, {"crop_mode": "squash", "interpolation": "bilinear"}),
    "siglip": (
        "SiglipImageProcessor",
        {"size": {"height": 96, "width": 96}},
        {"height": 96, "crop_mode": "squash"},
    ),
    "not square": ("ViTImageProcessor", {"size": {"height": 64, "width": 96}}, {"height": 64, "width": 96}),
    "clip": ("CLIPImageProcessor", {}, {"crop_mode": "center", "crop_pct": 1.0}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 256}}, {"crop_mode": "center", "crop_pct": 0.875}),
    "odd sizes": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 131}, "crop_size": {"height": 97, "width": 97}, "resample": 1},
        {"height": 97, "interpolation": "lanczos"},
    ),
    "deit": ("DeiTImageProcessor", {}, {"crop_mode": "squash", "crop_pct": 0.875}),
    "beit": ("BeitImageProcessor", {}, {"crop_mode": "squash", "interpolation": "bicubic"}),
    "convnext": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 224}},
        {"crop_mode": "center", "crop_pct": 0.875},
    ),
    "large convnext": ("ConvNextImageProcessor", {}, {"height": 384, "crop_mode": "squash", "crop_pct": 1.0}),
    "levit": ("LevitImageProcessor", {}, {"crop_pct": 0.875}),
    "poolformer": ("PoolFormerImageProcessor", {}, {"crop_mode": "center"}),
    "efficientnet": ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5}, {}),
    "mobilevit": ("MobileViTImageProcessor", {"size": {"shortest_edge": 288}}, {"height": 256}),
    "numbers 0 to 255": ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}, {}),
}


def written(folder: Path, kind: str, settings: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **settings}))
    return folder


def pictures(folder: Path) -> list[Path]:
    """Noise of sizes whose crops end on whole and on half pixels."""
    random = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(301, 407), (409, 300), (256, 256), (90, 333), (299, 302)]):
        coarse = Image.fromarray(random.integers(0, 256, (17, 23, 3), np.uint8))
        paths.append(folder / f"{number}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def levels(processing: Processing, processor: Any, path: Path) -> np.ndarray:
    """How many grey levels our input lies from the library's, [3, h, w]."""
    ours = processing.normalise([processing.view.load(Item(id="a", file=path))], "cpu")[0].numpy()
    with Image.open(path) as image:
        theirs = np.asarray(processor(images=image.convert("RGB"), return_tensors="np")["pixel_values"][0])
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs) * np.array(processing.std)[:, None, None] / processing.rescale


@pytest.mark.parametrize("case", list(PROCESSORS))
def test_input_equals_the_library_on_pil(tmp_path: Path, case: str) -> None:
    kind, settings, expected = PROCESSORS[case]
    folder = written(tmp_path / "model", kind, settings)
    processing = read(folder, NOTHING)
    assert {key: getattr(processing.view, key) for key in expected} == expected
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert max(levels(processing, processor, path).max() for path in pictures(tmp_path)) < 1e-3


@pytest.mark.parametrize("case", ["vit", "clip", "dinov2", "convnext"])
def test_view_lies_within_two_grey_levels_of_the_library_on_torchvision(tmp_path: Path, case: str) -> None:
    kind, settings, _ = PROCESSORS[case]
    folder = written(tmp_path / "model", kind, settings)
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    processing, processor = read(folder, NOTHING), AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    photographs = sorted((REAL / "imagenet_sample/images").glob("*.jpg"))[::20]
    differences = [levels(processing, processor, path) for path in photographs]
    assert max(difference.max() for difference in differences) < 2.01
    assert np.mean([difference.mean() for difference in differences]) < 0.05


def test_dinov3_which_resizes_floats_is_followed_to_a_grey_level(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "DINOv3ViTImageProcessor", {"size": {"height": 112, "width": 112}})
    processing, processor = read(folder, NOTHING), AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    assert max(levels(processing, processor, path).max() for path in pictures(tmp_path)) < 1.5


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ViltImageProcessor", {}, "do_pad is true"),
        ("DonutImageProcessor", {}, "do_pad is true"),
        ("Siglip2ImageProcessor", {}, "max_num_patches"),
        ("ImageGPTImageProcessor", {}, "do_color_quantize is true"),
        ("ViTImageProcessor", {"do_resize": False}, "do_resize is false"),
        ("BitImageProcessor", {"do_center_crop": False}, "do_center_crop is false"),
        ("BitImageProcessor", {"crop_size": {"height": 32, "width": 64}}, "crop_size"),
        ("BitImageProcessor", {"size": {"shortest_edge": 200}}, "crop_size is 224 of an image of 200"),
        ("ViTImageProcessor", {"image_mean": [0.5]}, "three channels"),
        # Crops before it resizes, which no key says.
        ("PerceiverImageProcessor", {"crop_size": {"height": 224, "width": 224}}, "does more than resize, crop"),
    ],
)
def test_processor_that_no_view_follows_is_refused_by_its_key(
    tmp_path: Path, kind: str, settings: dict[str, Any], message: str
) -> None:
    folder = written(tmp_path, kind, settings)
    with pytest.raises(
        ConfigError, match=rf"preprocessor_config\.json: .*{message}.*preprocessing\.input_size"
    ) as told:
        read(folder, NOTHING)
    assert "\n" not in str(told.value)


def test_preprocessing_that_is_said_as_a_whole_needs_no_processor(tmp_path: Path) -> None:
    said = Preprocessing(
        input_size=(3, 32, 48), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation="box", crop_mode="squash"
    )
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json is missing.*preprocessing\.mean"):
        read(tmp_path, replace(said, mean=None))
    processing = read(tmp_path, said)
    assert processing.view == ImageView(
        height=32, width=48, interpolation="box", crop_mode="squash", rounding="down"
    )
    assert (processing.mean, processing.rescale) == ((0.1, 0.2, 0.3), 1 / 255)
    assert len(processing.notes) == 5


def test_each_override_is_told_beside_the_models_own(tmp_path: Path) -> None:
    folder = written(tmp_path, "ViTImageProcessor", {})
    overrides = Preprocessing(mean=(0.1, 0.2, 0.3), crop_pct=0.9, std=(0.5, 0.5, 0.5))
    assert read(folder, overrides).notes == (
        "preprocessing.mean is (0.1, 0.2, 0.3), the model's own is (0.5, 0.5, 0.5)",
        "preprocessing.crop_pct is 0.9, the model's own is 1.0",
    )
    assert read(folder, NOTHING).notes == ()
    assert read(folder, overrides).recipe() != read(folder, NOTHING).recipe()


def test_broken_processor_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match="can't make an image processor of it"):
        read(tmp_path, NOTHING)
