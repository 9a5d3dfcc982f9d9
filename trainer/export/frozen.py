"""The frozen encoder by itself, in a folder that timm or transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from contract.files import replace_file
from encoders.timm_image import TimmImage
from encoders.weights import MODEL_FILES, SAFE

LICENCES = ("LICEN[CS]E*", "README.md")


def save_timm(encoder: TimmImage, model: Any, folder: Path) -> str:
    """As `timm.create_model("local-dir:FOLDER")` loads it; the preprocessing is what the encoder used."""
    from timm.models import save_for_hf

    save_for_hf(model, str(folder), model_args=dict(encoder._source.model_args), safe_serialization=True)
    file, processing = folder / "config.json", encoder._processing
    tree = json.loads(file.read_text())
    tree["pretrained_cfg"] |= {
        "input_size": [3, processing.view.height, processing.view.width],
        "mean": list(processing.mean),
        "std": list(processing.std),
        "interpolation": processing.view.interpolation,
        "crop_pct": processing.view.crop_pct,
        "crop_mode": processing.view.crop_mode,
    }
    replace_file(file, (json.dumps(tree, indent=2) + "\n").encode())
    return f'timm.create_model("local-dir:{inside(folder)}", pretrained=True)'


def save_transformers(source: Path, folder: Path) -> str:
    """The files of a transformers model as they are; of weights in two formats, only the safetensors."""
    folder.mkdir(parents=True)
    has_safetensors = any(source.glob(SAFE))
    for pattern in (*MODEL_FILES, *LICENCES):
        if pattern != "*.bin" or not has_safetensors:
            for file in source.glob(pattern):
                shutil.copyfile(file, folder / file.name)
    return f'transformers.AutoModel.from_pretrained("{inside(folder)}")'


def inside(folder: Path) -> str:
    """As seen from the bundle."""
    parts = folder.parts
    return "/".join(parts[len(parts) - 1 - parts[::-1].index("frozen") :])
