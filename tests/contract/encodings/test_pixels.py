import numpy as np
import pytest
import torch

from contract.encodings import Pixels
from contract.encodings.pixels import folded

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def convolution(patch: int, dim: int = 24) -> torch.nn.Conv2d:
    torch.manual_seed(patch)
    return torch.nn.Conv2d(3, dim, kernel_size=patch, stride=patch)


def constants(layer: torch.nn.Conv2d) -> dict[str, np.ndarray]:
    assert layer.bias is not None
    return folded(layer.weight.detach().numpy(), layer.bias.detach().numpy(), MEAN, STD)


def views(height: int, width: int, num_rows: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (num_rows, height, width, 3), dtype=np.uint8)


def embedded(layer: torch.nn.Conv2d, pixels: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """What a ViT makes of the normalised view: [n, D, rows, columns] -> [n, T, D]."""
    normalised = (torch.from_numpy(pixels).to(dtype) / 255 - torch.from_numpy(MEAN)) / torch.from_numpy(STD)
    with torch.no_grad():
        grid = layer.to(dtype)(normalised.permute(0, 3, 1, 2))
    return grid.flatten(2).transpose(1, 2).numpy()


@pytest.mark.parametrize("patch", [1, 4, 14, 16])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (4, 1)])
def test_decoding_is_the_patch_embedding_of_the_normalised_view(patch: int, grid: tuple[int, int]) -> None:
    layer = convolution(patch)
    pixels = views(grid[0] * patch, grid[1] * patch)
    encoding = Pixels(height=pixels.shape[1], width=pixels.shape[2])
    decoded = encoding.decode(encoding.encode(pixels, {}), constants(layer), (grid[0] * grid[1], 24), np)
    exact = embedded(layer, pixels, torch.float64)
    half_an_ulp_of_float16 = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64) / 2
    assert (np.abs(decoded - exact) <= half_an_ulp_of_float16 + 2e-6).all()
    # No further from the truth than the float32 convolution itself is, in order of magnitude.
    own = np.abs(embedded(layer.float(), pixels, torch.float32) - exact).max()
    assert np.abs(decoded - exact).max() <= max(10 * own, 2e-6)


def test_tokens_are_the_patches_row_by_row() -> None:
    layer = convolution(4)
    pixels = np.zeros((1, 8, 12, 3), np.uint8)
    pixels[0, 4:, 4:8] = 255  # the fifth patch of 2 x 3
    encoding = Pixels(height=8, width=12)
    decoded = encoding.decode(encoding.encode(pixels, {}), constants(layer), (6, 24), np)[0]
    differs = [bool((token != decoded[0]).any()) for token in decoded]
    assert differs == [False, False, False, False, True, False]


def test_the_constants_are_float32_whose_values_lie_one_after_the_other() -> None:
    found = constants(convolution(16, dim=8))
    assert {name: (a.dtype.name, a.shape, a.flags.c_contiguous) for name, a in found.items()} == {
        "weight": ("float32", (8, 16, 16, 3), True),
        "bias": ("float32", (8,), True),
    }


def test_pixels_are_stored_as_they_are() -> None:
    pixels = views(8, 12)
    stored = Pixels(height=8, width=12).encode(pixels, {})["pixels"]
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, pixels)


def test_they_take_half_the_bytes_of_float16_embeddings_of_a_vit_b() -> None:
    (dtype, shape), *_ = Pixels(height=224, width=224).stored((196, 768)).values()
    assert 2 * np.zeros(shape, dtype).nbytes == np.zeros((196, 768), np.float16).nbytes
