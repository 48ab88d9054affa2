"""The recipe of FOMM training: kind `train_fomm`, one dataclass per table of the TOML file.

The defaults are the published vox-256 training. What the demo model adds (a renderer's landmarks,
region weights, an average of weights, a schedule by the clock) is off unless a recipe asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dfm_engine.errors import RecipeError
from dfm_engine.fomm.config import FommConfig, parse_config
from dfm_engine.recipe import load_recipe


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where pairs of frames come from."""

    source: Literal["folder", "procedural"] = _doc(
        "folder", "clips of --data (a frame store, or a folder to make one of), or rendered faces"
    )
    id_sampling: bool = _doc(
        True, "folder: an epoch runs over identities (the name before the first #), not over clips"
    )
    repeats: int = _doc(75, "folder: how often an epoch repeats the list")
    frames_per_clip: int = _doc(
        0, "folder: evenly spaced frames that the store keeps of a clip; 0: all, as published"
    )
    layout: Literal["rgb24", "i420"] = _doc(
        "rgb24", "folder: how the store keeps them; i420 takes half the space"
    )
    loader: Literal["auto", "device", "host", "memmap"] = _doc(
        "auto", "folder: where the frames are while training; auto: the first that fits"
    )
    workers: int = _doc(2, "folder: processes that decode clips into the store")
    identities: int = _doc(1000, "procedural: how many people are rendered")
    frames: int = _doc(16, "procedural: frames per person, each in another state")
    sharing: int = _doc(4, "procedural: people who share one set of states (cross-identity pairs)")
    first_seed: int = _doc(100_000, "procedural: the first person's seed; tests use seeds below")
    render_limit_s: float = _doc(
        0.0, "procedural: stop rendering after this time, with fewer people; 0: no limit"
    )
    zoom: tuple[float, ...] = _doc(
        (1.0, 1.4), "procedural: range of enlargement; face crops of a build are 1.2 to 1.4"
    )
    cross_share: float = _doc(
        0.0, "procedural: share of rows driven by another person in the wanted state"
    )
    neutral_share: float = _doc(0.5, "procedural: share of pairs whose source is the neutral state")

    def __post_init__(self) -> None:
        _at_least(self, 1, "repeats", "identities", "sharing", "workers")
        _at_least(self, 0, "frames_per_clip")
        _at_least(self, 2, "frames")
        _within(self, 0.0, 1.0, "cross_share", "neutral_share")
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1]:
            raise RecipeError(f"data.zoom must be a rising pair, found {list(self.zoom)}")
        if self.cross_share and self.sharing < 2:
            raise RecipeError(
                f"data.cross_share {self.cross_share} needs data.sharing of 2 or more, "
                f"found {self.sharing}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What happens to a pair before it is seen; one draw for both frames."""

    time_flip: bool = _doc(True, "swap source and driving with p 0.5")
    horizontal_flip: bool = _doc(True, "mirror with p 0.5 where time was not flipped")
    brightness: float = _doc(0.1, "half width of the factor's range around 1")
    contrast: float = _doc(0.1, "likewise")
    saturation: float = _doc(0.1, "likewise")
    hue: float = _doc(0.1, "half width of the shift, in turns")

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0, "brightness", "contrast", "saturation")
        _within(self, 0.0, 0.5, "hue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long, in what steps, and how the learning rate falls."""

    epochs: int = _doc(100, "the whole training; --steps and --minutes end a run earlier")
    steps_per_epoch: int = _doc(0, "0: what the data give; procedural data need a number")
    batch_size: int = _doc(40, "pairs per step")
    lr_generator: float = _doc(2e-4, "generator and dense motion")
    lr_keypoints: float = _doc(2e-4, "keypoint detector")
    lr_discriminator: float = _doc(2e-4, "discriminator")
    decay: Literal["multistep", "cosine"] = _doc("multistep", "form of the learning rate's fall")
    milestones: tuple[int, ...] = _doc((60, 90), "multistep: times 0.1 at each of these epochs")
    lr_end_share: float = _doc(0.05, "cosine: the last rate as a share of the first")
    warmup_steps: int = _doc(0, "the rate rises linearly over these")
    seed: int = _doc(0, "initial weights, order of the data, augmentation")
    phase_px: tuple[int, ...] = _doc(
        (), "frame sides of the phases; every network sees the same small pictures in each"
    )
    phase_until: tuple[float, ...] = _doc((), "share of the training at which each phase ends")
    phase_batch: tuple[int, ...] = _doc((), "pairs per step in each phase")

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "batch_size")
        _at_least(self, 0, "steps_per_epoch", "warmup_steps")
        _within(self, 0.0, 1.0, "lr_end_share", "lr_generator", "lr_keypoints", "lr_discriminator")
        if not len(self.phase_px) == len(self.phase_until) == len(self.phase_batch):
            raise RecipeError(
                "schedule.phase_px, phase_until and phase_batch must be of one length, found "
                f"{len(self.phase_px)}, {len(self.phase_until)} and {len(self.phase_batch)}"
            )
        if self.phase_until and (
            list(self.phase_until) != sorted(self.phase_until) or self.phase_until[-1] != 1.0
        ):
            raise RecipeError(
                f"schedule.phase_until must rise to 1.0, found {list(self.phase_until)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """Adam, and how the arithmetic is done."""

    betas: tuple[float, ...] = _doc((0.5, 0.999), "of the three Adams")
    grad_clip: float = _doc(0.0, "largest gradient norm of generator and keypoints; 0: no bound")
    ema: float = _doc(0.0, "decay of the average of weights that is shipped; 0: none")
    bn_momentum: float = _doc(0.1, "of the running statistics of every batch norm")
    recalibrate_batches: int = _doc(
        0, "after the last step, batch-norm statistics are taken anew over this many batches"
    )
    autocast: Literal["off", "bf16"] = _doc(
        "off", "bf16 for the generator on a GPU; keypoints and sampling grids stay float32"
    )
    tf32: bool = _doc(
        False, "float32 convolutions (under autocast: the keypoint detector) may round to TF32"
    )
    channels_last: bool = _doc(False, "memory order of images and weights")
    cuda_graph: bool = _doc(False, "record a step once and replay it; needs a GPU")
    identity_start: bool = _doc(
        False, "num_down_blocks 0 only: the first and last layer start by passing colours through"
    )

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0, "ema", "bn_momentum")
        if len(self.betas) != 2:
            raise RecipeError(f"optimiser.betas must be two numbers, found {list(self.betas)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Weights of the terms; 0 leaves a term out and its computation too."""

    scales: tuple[float, ...] = _doc((1.0, 0.5, 0.25, 0.125), "pyramid of prediction and target")
    vgg_weights: str = _doc("", "VGG19 in torchvision's format; empty trains with the substitute")
    perceptual: tuple[float, ...] = _doc(
        (10.0, 10.0, 10.0, 10.0, 10.0), "VGG19: weight of each of its five layers"
    )
    structure: float = _doc(10.0, "substitute for VGG19: L1 + gradients + SSIM at every scale")
    gradient: float = _doc(1.0, "substitute: its gradient term")
    ssim: float = _doc(0.1, "substitute: its SSIM term")
    equivariance_value: float = _doc(10.0, "keypoints follow a random warp of the frame")
    equivariance_jacobian: float = _doc(10.0, "their jacobians too")
    sigma_affine: float = _doc(0.05, "strength of the warp's affine part")
    sigma_tps: float = _doc(0.005, "strength of its spline part")
    points_tps: int = _doc(5, "control points of the spline per side")
    generator_gan: float = _doc(0.0, "LSGAN; 0: the discriminator is saved, never trained")
    discriminator_gan: float = _doc(1.0, "LSGAN, the discriminator's own step")
    feature_matching: tuple[float, ...] = _doc(
        (10.0, 10.0, 10.0, 10.0), "L1 of the discriminator's features, per block; only with LSGAN"
    )
    points: float = _doc(0.0, "keypoints agree with the renderer's landmarks")
    point_jacobians: float = _doc(0.0, "jacobians agree with the renderer's")
    supervision_end: float = _doc(1.0, "both fall linearly to this share by the end")
    region_strength: float = _doc(0.0, "extra weight of pixels around eyes and mouth")
    region_sigma: float = _doc(0.1, "size of those regions; the picture spans 2")
    warped: float = _doc(0.0, "L1 of the source moved by the deformation, at quarter size")
    occlusion: float = _doc(
        0.0, "the occlusion map opens where the moved source is already right, closes elsewhere"
    )

    def __post_init__(self) -> None:
        if len(self.perceptual) != 5:
            raise RecipeError(
                f"losses.perceptual weighs VGG19's five layers, found {list(self.perceptual)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a run writes, and how often."""

    checkpoint_every_epochs: int = _doc(50, "a checkpoint in the published format")
    sheet_every_epochs: int = _doc(1, "a sheet of samples")
    log_every_steps: int = _doc(50, "a point of the loss curves and a line of progress")

    def __post_init__(self) -> None:
        _at_least(self, 1, "checkpoint_every_epochs", "sheet_every_epochs", "log_every_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFommRecipe:
    """Everything that decides a FOMM training run.

    The `model` table is the architecture, in the field names of the published YAML.
    """

    kind: Literal["train_fomm"] = _doc("train_fomm", "what the recipe is for")
    name: str = _doc("custom", "shown in reports")
    description: str = _doc("", "one sentence")
    align_corners: bool = _doc(True, "of every grid sample; the published weights' training")
    model: FommConfig = field(default_factory=parse_config)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=Schedule)
    optimiser: Optimiser = field(default_factory=Optimiser)
    losses: Losses = field(default_factory=Losses)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if self.data.source == "folder":
            needs_truth = ("points", "point_jacobians", "region_strength")
            asked = [name for name in needs_truth if getattr(self.losses, name)]
            if self.data.cross_share or asked:
                raise RecipeError(
                    f"{self.name}: data.cross_share and losses.{', losses.'.join(needs_truth)} "
                    "need a renderer's ground truth; set them to 0 or data.source to procedural"
                )
        elif not self.schedule.steps_per_epoch:
            raise RecipeError(f"{self.name}: procedural data need schedule.steps_per_epoch")
        for side in self.schedule.phase_px:
            phase_config(self.model, side)


def load_train_recipe(name_or_path: str | Path) -> TrainFommRecipe:
    """Read a training recipe, shipped (by name) or your own (by path).

    Raises:
        RecipeError: not found, not TOML, an unknown or absent key, a value out of range.
    """
    try:
        return load_recipe(name_or_path, TrainFommRecipe)
    except TypeError as error:  # a field of [model] without default is absent
        raise RecipeError(f"{name_or_path}: the model table is incomplete: {error}") from error


def phase_config(config: FommConfig, frame_px: int) -> FommConfig:
    """The same networks for another frame side, their small pictures unchanged in size.

    A model of 256 px that looks for keypoints in 64 px (scale 0.25) becomes one of 128 px with
    scale 0.5: the weights carry over, only the anti-alias kernels differ.

    Raises:
        RecipeError: a scale factor would rise above 1.
    """
    from dataclasses import replace

    ratio = config.frame_size[0] / frame_px
    dense = config.generator.dense_motion_params
    scales = (config.kp_detector.scale_factor * ratio, dense.scale_factor * ratio)
    if max(scales) > 1:
        raise RecipeError(
            f"a phase of {frame_px} px would enlarge the pictures that the networks see "
            f"({config.frame_size[0]} px with scale factors {config.kp_detector.scale_factor} and "
            f"{dense.scale_factor}); use phases of at least "
            f"{int(config.frame_size[0] * max(scales) / ratio)} px"
        )
    return replace(
        config,
        frame_size=(frame_px, frame_px),
        kp_detector=replace(config.kp_detector, scale_factor=scales[0]),
        generator=replace(
            config.generator, dense_motion_params=replace(dense, scale_factor=scales[1])
        ),
    )


def _at_least(section: Any, low: int, *names: str) -> None:
    for name in names:
        if getattr(section, name) < low:
            raise RecipeError(
                f"{type(section).__name__.lower()}.{name} must be at least {low}, "
                f"found {getattr(section, name)}"
            )


def _within(section: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(section, name) <= high:
            raise RecipeError(
                f"{type(section).__name__.lower()}.{name} must be within {low}..{high}, "
                f"found {getattr(section, name)}"
            )
