"""The ResNets for CIFAR of He et al. 2016 (arXiv 1512.03385, section 4.2), the example of `kind: custom`.

A 3 x 3 convolution to 16 channels; three stages of n blocks of two 3 x 3 convolutions, 16, 32 and 64 channels wide,
the first convolution of the second and third stage with a stride of 2; the mean over the pixels; a linear
classifier. 6n + 2 layers: resnet20 has n = 3, resnet56 n = 9. Shortcuts are identities without parameters (option
A): where a stage gets smaller, every other pixel, with channels of zeros on either side.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.stride, self.num_new = stride, num_out - num_in

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        kept = maps[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(kept, (0, 0, 0, 0, self.num_new // 2, self.num_new - self.num_new // 2))
        return F.relu(residual + shortcut)


class ResNet(nn.Module):
    """Float32 [n, 3, 32, 32] -> patch_embeddings [n, 64, 64], features [n, 64], logits [n, num_classes]."""

    def __init__(self, num_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(*(first if number == 0 else (width, width, 1))) for number in range(num_blocks)))
            for width, first in ((16, (16, 16, 1)), (32, (16, 32, 2)), (64, (32, 64, 2)))
        )
        self.linear = nn.Linear(64, num_classes)
        self.about = {"patch_embeddings": {"grid": [8, 8], "patch_size": [4, 4], "num_prefix_tokens": 0}}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        features = maps.mean((2, 3))
        return {
            "patch_embeddings": maps.flatten(2).mT,
            "features": features,
            "logits": self.linear(features),
        }


def resnet20(num_classes: int = 10) -> nn.Module:
    return ResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> nn.Module:
    return ResNet(9, num_classes)
