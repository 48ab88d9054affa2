"""A whole FOMM: the two networks that animate, with the checks and the bookkeeping around them."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor, nn

from dfm_engine.errors import ShapeError, WeightsError
from dfm_engine.fomm.config import ConfigSource, FommConfig, parse_config
from dfm_engine.fomm.discriminator import Discriminator
from dfm_engine.fomm.generator import Generator
from dfm_engine.fomm.geometry import resize
from dfm_engine.fomm.keypoints import KeypointDetector
from dfm_engine.fomm.transfer import TransferMode, transfer
from dfm_engine.fomm.values import Animation, Keypoints, SourceFeatures
from dfm_engine.fomm.weights import (
    Checkpoint,
    fill_network,
    read_checkpoint,
    tensor_digest,
    write_checkpoint,
)


class Fomm(nn.Module):
    """Keypoint detector and generator; `load` or `initialise` makes one, in evaluation mode.

    The methods below are for inference as it is done here: once per source, once per driving
    clip, then frame by frame. Training calls `kp_detector` and `generator` directly.

    Attributes:
        config: the architecture.
        align_corners: how features are sampled; see `geometry.sample`.
        weights_sha256: of the checkpoint file; of the tensors where there was no file.
        ignored: top-level parts of the checkpoint that were not used.
    """

    def __init__(self, config: FommConfig, *, align_corners: bool = True) -> None:
        super().__init__()
        self.config = config
        self.align_corners = align_corners
        self.weights_sha256 = ""
        self.ignored: tuple[str, ...] = ()
        self.kp_detector = KeypointDetector(config)
        self.generator = Generator(config, align_corners=align_corners)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) that the weights were trained for."""
        return self.config.frame_size

    def keypoints(self, images: Tensor) -> Keypoints:
        """Keypoints of (B, 3, H, W) images in [0, 1]; of a driving clip, once per clip."""
        self._check_images(images)
        return self.kp_detector(images)

    def encode_source(self, image: Tensor) -> SourceFeatures:
        """Features of (B, 3, H, W) source images in [0, 1]; once per source."""
        self._check_images(image)
        return self.generator.encode(image)

    @staticmethod
    def transfer(
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        mode: TransferMode,
    ) -> Keypoints:
        """The driving keypoints carried over to the source; see `transfer.transfer`."""
        return transfer(kp_source, kp_driving, kp_driving_initial, mode=mode)

    def animate(
        self, source_features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Animation:
        """Frames of B driving rows.

        Args:
            source_features: of one source, which then serves all rows, or of B.
            kp_source: likewise.
            kp_driving: B rows, after `transfer`.

        Raises:
            ShapeError: neither one row nor B; another number of keypoints than the model's;
                jacobians absent where the model needs them.
        """
        rows = len(kp_driving)
        for name, keypoints in (("source", kp_source), ("driving", kp_driving)):
            self._check_keypoints(name, keypoints)
        features, kp_source = source_features.expand(rows), kp_source.expand(rows)
        animation = self.generator.animate(features, kp_source, kp_driving)
        return Animation(
            prediction=animation.prediction,
            occlusion_map=animation.occlusion_map,
            deformation=animation.deformation,
            mask=animation.mask,
        )

    def _check_images(self, images: Tensor) -> None:
        channels = self.config.num_channels
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise ShapeError(
                f"images must be float (B, {channels}, H, W) in [0, 1], got {images.dtype} "
                f"{tuple(images.shape)}; uint8 frames go through pixels.images_from_frames"
            )
        self.config.check_size(*images.shape[2:])

    def _check_keypoints(self, name: str, keypoints: Keypoints) -> None:
        if keypoints.value.shape[1] != self.config.num_kp:
            raise ShapeError(
                f"{name} keypoints are {tuple(keypoints.value.shape)}, the model has "
                f"{self.config.num_kp} keypoints"
            )
        if (keypoints.jacobian is not None) != self.config.estimate_jacobian:
            state = "absent" if keypoints.jacobian is None else "given"
            raise ShapeError(
                f"{name} jacobians are {state}, the model has estimate_jacobian "
                f"{self.config.estimate_jacobian}"
            )


def load(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    config: ConfigSource = None,
    *,
    align_corners: bool = True,
) -> Fomm:
    """Load a FOMM, in evaluation mode, on the CPU, in float32.

    Args:
        checkpoint: `vox-cpk.pth.tar`, `vox-adv-cpk.pth.tar`, a fork's file or our safetensors.
        config: the reference's YAML (path or parsed); None is what the file itself says, else
            vox-256.
        align_corners: True for weights trained as the published ones were (torch 1.0); False for
            what the public repository computes on torch >= 1.3.

    Raises:
        WeightsError: absent, damaged, or not of this architecture.
        UsageError: the configuration cannot be used.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    parsed = parse_config(checkpoint.config if config is None else config)
    with torch.device("meta"):
        fomm = Fomm(parsed, align_corners=align_corners)
    for name in ("kp_detector", "generator"):
        what = f"FOMM weights {checkpoint.path}: {name}"
        if name not in checkpoint.networks:
            raise WeightsError(f"{what}: absent; found {sorted(_contents(checkpoint))}")
        fill_network(fomm.get_submodule(name), checkpoint.networks[name], what=what)
    fomm.weights_sha256 = checkpoint.sha256
    used = {"kp_detector", "generator"}
    fomm.ignored = tuple(sorted(name for name in _contents(checkpoint) if name not in used))
    return fomm.eval()


def load_discriminator(
    checkpoint: str | os.PathLike[str] | Checkpoint, config: ConfigSource = None
) -> Discriminator:
    """The discriminator of a checkpoint, to go on training with.

    Raises:
        WeightsError: as `load`; also where the file has none, as some published ones.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    what = f"FOMM weights {checkpoint.path}: discriminator"
    if "discriminator" not in checkpoint.networks:
        raise WeightsError(f"{what}: absent; start from a new one")
    with torch.random.fork_rng(devices=[]):
        discriminator = Discriminator(parse_config(checkpoint.config if config is None else config))
    fill_network(discriminator, checkpoint.networks["discriminator"], what=what)
    return discriminator.eval()


def initialise(config: ConfigSource = None, seed: int = 0, *, align_corners: bool = True) -> Fomm:
    """A FOMM with seeded random weights: to train from, to test with, to demonstrate on.

    Convolutions keep the size of their signal (He et al. 2015), and the norms' running statistics
    are taken from one pass over seeded smooth pictures. So also without training the keypoints
    spread and follow the image, and the prediction is not grey. Jacobians start near the identity.

    Raises:
        UsageError: the configuration cannot be used.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        fomm = Fomm(parse_config(config), align_corners=align_corners)
    with torch.no_grad():
        for name, module in fomm.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            bound = _HEAD_GAINS.get(name, math.sqrt(2)) * math.sqrt(3 / module.weight[0].numel())
            # float64 and one operation at a time: uniform_ rounds by instruction set
            draw = torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
            module.weight.copy_((2 * draw - 1) * bound)
            if module.bias is not None and name != "kp_detector.jacobian":
                module.bias.zero_()
        _calibrate_norms(fomm, generator)
    fomm.weights_sha256 = tensor_digest(_networks(fomm))
    return fomm.eval()


# Standard deviation of a head's output where that of its features is one.
_HEAD_GAINS = {
    "kp_detector.kp": 0.3,  # the temperature of 0.1 makes this three: some peaks, not a mean
    "kp_detector.jacobian": 0.2,
    "generator.dense_motion_network.mask": 2.0,
    "generator.dense_motion_network.occlusion": 2.0,
    "generator.final": 1.0,
}


def _calibrate_norms(fomm: Fomm, generator: torch.Generator) -> None:
    """Set every norm's running statistics to those of one batch.

    In float64, then rounded to bfloat16: so equal seeds give equal bits, whatever the number of
    threads or the instruction set.
    """
    height, width = fomm.config.smallest_size()
    coarse = torch.rand(2, fomm.config.num_channels, 4, 4, generator=generator, dtype=torch.float64)
    images = resize(coarse, height, width)
    norms = [module for module in fomm.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    fomm.double().train()
    keypoints = fomm.kp_detector(images)
    fomm.generator(images, keypoints, keypoints[[1, 0]])
    for norm in norms:
        norm.momentum = 0.1
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                statistic.copy_(statistic.bfloat16())
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()
    fomm.float()


def save(
    fomm: Fomm,
    path: str | os.PathLike[str],
    *,
    discriminator: Discriminator | None = None,
    others: dict[str, object] | None = None,
    half: bool = False,
) -> None:
    """Write a FOMM so that `load` reads it back; see `weights.write_checkpoint`.

    Args:
        fomm: on any device.
        path: ends in `.safetensors`, or in anything else for the published form.
        discriminator: kept beside, to go on training.
        others: further entries of the published form, such as `epoch` and `optimizer_generator`.
        half: float16 convolution weights, half the size.

    Raises:
        UsageError: `others` for a safetensors file.
    """
    networks: dict[str, nn.Module] = _networks(fomm)
    if discriminator is not None:
        networks["discriminator"] = discriminator
    write_checkpoint(path, networks, config=fomm.config.to_dict(), others=others, half=half)


def _networks(fomm: Fomm) -> dict[str, nn.Module]:
    return {"generator": fomm.generator, "kp_detector": fomm.kp_detector}


def _contents(checkpoint: Checkpoint) -> list[str]:
    return [*checkpoint.networks, *checkpoint.others]
