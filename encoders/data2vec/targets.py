"""What a data2vec student regresses, float32 [n, T, D] (arXiv 2202.03555, and version 2: arXiv 2212.07525).

    last        what the last block gives, after its residual additions
    topk_mean   mean over the top k blocks of norm(FFN(x)), the feed-forward network's own output: before the
                residual is added, before layer scale too; of images, the mean is layer-normed in the end

    norm        layer: (x - mean) / sqrt(var + 1e-5) over D, for each token
                instance: the same over the tokens of the item, for each of the D; padding and CLS are none of them

k and norm are not in a checkpoint. The published models of base size had, by version:

    image  1: 6, layer; 2: 10, instance     text  1: 10, layer; 2: 12, instance     audio  1 and 2: 8, instance
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from contract.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from encoders.outputs import Caught

Kind = Literal["last", "topk_mean"]
Normalisation = Literal["layer", "instance", "none"]
Version = Literal[1, 2]

PUBLISHED: dict[tuple[str, Version], tuple[int, Normalisation]] = {
    ("image", 1): (6, "layer"),
    ("image", 2): (10, "instance"),
    ("text", 1): (10, "layer"),
    ("text", 2): (12, "instance"),
    ("audio", 1): (8, "instance"),
    ("audio", 2): (8, "instance"),
}
EPSILON = 1e-5


class TargetSettings(Protocol):
    """Which targets, and of `topk_mean` the k and the norm; None: the published ones of `version`."""

    @property
    def targets(self) -> Kind: ...  # noqa: D102

    @property
    def k(self) -> int | None: ...  # noqa: D102

    @property
    def normalise(self) -> Normalisation | None: ...  # noqa: D102

    @property
    def version(self) -> Version: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Settled for one model: the `blocks`, counted from 0, that are averaged, and how."""

    kind: Kind
    blocks: tuple[int, ...]
    normalise: Normalisation = "none"
    layer_normed: bool = False

    def about(self) -> dict[str, Any]:
        """What a reader of the field needs."""
        if self.kind == "last":
            return {"kind": self.kind, "blocks": list(self.blocks)}
        return {
            "kind": self.kind,
            "k": len(self.blocks),
            "blocks": list(self.blocks),
            "normalise": self.normalise,
            "layer_normed": self.layer_normed,
        }

    def modules(self, block: str, feed_forward: str) -> dict[str, str]:
        """The modules whose outputs are wanted, by block, from their paths with {} for the block's number."""
        path = block if self.kind == "last" else feed_forward
        return {str(number): path.format(number) for number in self.blocks}

    def of(self, caught: Caught, *, num_before: int = 0, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The targets, float32 [n, T, D], of what was caught behind `num_before` tokens such as CLS.

        mask [n, T] says which are real, all without one.
        """
        import torch

        outputs = [_first(caught[str(number)]).float()[:, num_before:] for number in self.blocks]
        if self.kind == "last":
            return outputs[0]
        width = outputs[0].shape[-1:]
        if self.normalise == "layer":
            outputs = [torch.nn.functional.layer_norm(output, width, eps=EPSILON) for output in outputs]
        elif self.normalise == "instance":
            outputs = [instance_norm(output, mask) for output in outputs]
        mean = torch.stack(outputs).mean(dim=0)
        return torch.nn.functional.layer_norm(mean, width, eps=EPSILON) if self.layer_normed else mean


def settle(settings: TargetSettings, modality: str, num_blocks: int) -> Targets:
    """The targets of a model with so many blocks."""
    if settings.targets == "last":
        if settings.k is not None or settings.normalise is not None:
            raise ConfigError("targets: last is one block's output as it is; k and normalise belong to topk_mean")
        return Targets(kind="last", blocks=(num_blocks - 1,))
    published_k, published_norm = PUBLISHED[modality, settings.version]
    k = settings.k or published_k
    if k > num_blocks:
        raise ConfigError(f"k: the top {k} blocks, and the model has {num_blocks}; give a smaller k")
    return Targets(
        kind="topk_mean",
        blocks=tuple(range(num_blocks - k, num_blocks)),
        normalise=settings.normalise or published_norm,
        layer_normed=modality == "image",
    )


def instance_norm(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Each of the D of [n, T, D] with mean 0 and variance 1 over the T that are real, all without a mask [n, T]."""
    import torch

    weight = torch.ones_like(values[..., :1]) if mask is None else mask.unsqueeze(-1).float()
    count = weight.sum(dim=1, keepdim=True)
    centred = values - (values * weight).sum(dim=1, keepdim=True) / count
    variance = (centred.square() * weight).sum(dim=1, keepdim=True) / count
    return centred * torch.rsqrt(variance + EPSILON)


def _first(output: Any) -> torch.Tensor:
    """What a module gave, of which some give a tuple."""
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first
