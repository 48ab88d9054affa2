"""The perceptual distance: VGG19 features, or a substitute that needs no weights.

`VggFeatures` reads a file in torchvision's VGG19 state-dict format (`features.N.weight`, ...; a
classifier in the file is ignored). The project ships no such file: without one, training uses
`losses.structure_distance`, and says so.

Source: FOMM (Siarohin et al. 2019), section 3.3; Johnson et al. 2016.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from dfm_engine.errors import WeightsError

# Convolution widths between poolings ("M") up to relu5_1, and the indexes of the five layers
# compared (relu1_1 .. relu5_1) in torchvision's `features`.
_LAYOUT: tuple[int | str, ...] = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"),
    *(512, 512, 512, 512, "M", 512),
)
COMPARED = (1, 6, 11, 20, 29)
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, what VGG19 was trained on
_STD = (0.229, 0.224, 0.225)


class VggFeatures(nn.Module):
    """relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of images (B, 3, H, W) in [0, 1]; frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _LAYOUT:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """The five feature maps, shallow to deep."""
        hidden = (images - self.mean) / self.std
        found: list[Tensor] = []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in COMPARED:
                found.append(hidden)
        return found


def load_vgg(path: str | Path) -> VggFeatures:
    """Read VGG19's convolutions from a torchvision state dict (`torch.save`) or safetensors file.

    Raises:
        WeightsError: no such file, not readable without executing code, or not VGG19's layers.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"reading VGG19 weights: no file {path}; save torchvision's vgg19 state dict there, "
            'or set losses.vgg_weights = "" to train with the substitute'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"reading VGG19 weights from {path}: {error}") from error
    model = VggFeatures()
    wanted = model.state_dict()
    missing = sorted(key for key in wanted if key not in state)
    if missing:
        raise WeightsError(
            f"{path} is no VGG19 state dict in torchvision's format: {missing[0]!r} and "
            f"{len(missing) - 1} more keys are missing"
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise WeightsError(
                f"{path}: {key} is {tuple(state[key].shape)}, VGG19 has {tuple(value.shape)}"
            )
    model.load_state_dict({key: state[key] for key in wanted})
    return model
