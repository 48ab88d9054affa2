"""One step of FOMM training: from a batch of pairs to updated weights.

`Batch` is what the data give; `TrainingStep` owns the networks and their three Adams and turns a
batch into a dictionary of loss terms. Self rows: source and driving are one person, absolute
keypoints. Cross rows (procedural data only): another person drives, the keypoints are carried over
as `rel_adapt` does, and the target is the source's person in the driver's state.

Source: FOMM (Siarohin et al. 2019), section 3.3 and the published training code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfm_engine.fomm import losses
from dfm_engine.fomm.config import FommConfig
from dfm_engine.fomm.discriminator import Discriminator
from dfm_engine.fomm.equivariance import Warp
from dfm_engine.fomm.geometry import inverse_2x2, product_2x2, resize
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.fomm.values import Animation, Keypoints
from dfm_engine.fomm.vgg import VggFeatures, load_vgg

NETWORKS = ("generator", "kp_detector", "discriminator")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Batch:
    """B pairs on one device; the last C of them are cross rows.

    Attributes:
        source: (B, 3, H, W) in [0, 1].
        driving: (B, 3, H, W) what moves it; another person in the cross rows.
        target: (B, 3, H, W) the wanted prediction; equals `driving` in self rows.
        initial: (C, 3, H, W) the other person in the state of `source`, or None.
        points: (2 B + C, K, 2) true landmarks of source, driving and initial, or None.
        jacobians: (2 B + C, K, 2, 2) likewise.
        region_points: (B, N, 2) where the target's pixels count more, or None.
        supervision: () share of the landmark terms' weights that applies now.
        theta: (B, 2, 3) affine part of the equivariance warp, or None.
        control_points: (1, P, P, 2) its spline's control points.
        control_params: (B, 1, P * P) its spline's weights.
    """

    source: Tensor
    driving: Tensor
    target: Tensor
    supervision: Tensor
    initial: Tensor | None = None
    points: Tensor | None = None
    jacobians: Tensor | None = None
    region_points: Tensor | None = None
    theta: Tensor | None = None
    control_points: Tensor | None = None
    control_params: Tensor | None = None

    def __repr__(self) -> str:
        return f"Batch(source={tuple(self.source.shape)}, cross={self.cross_rows})"

    @property
    def cross_rows(self) -> int:
        """How many of the last rows are driven by another person."""
        return 0 if self.initial is None else len(self.initial)

    @property
    def warp(self) -> Warp | None:
        """The warp of the equivariance terms."""
        if self.theta is None or self.control_points is None or self.control_params is None:
            return None
        return Warp(self.theta, self.control_points, self.control_params)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of every field that is present."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None:
                yield item.name, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one forward pass gives.

    Attributes:
        keypoints: of source, driving and initial, 2 B + C rows.
        driving: B rows as the generator was given them.
        animation: B rows.
    """

    keypoints: Keypoints
    driving: Keypoints
    animation: Animation


class TrainingStep:
    """The networks in training, their optimisers, and what one batch does to them."""

    def __init__(
        self, recipe: TrainFommRecipe, config: FommConfig, *, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.config = config
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.schedule.seed)
            self.fomm = Fomm(config, align_corners=recipe.align_corners)
            self.discriminator = Discriminator(config)
        if recipe.optimiser.identity_start:
            start_as_identity(self.fomm)
        memory = torch.channels_last if recipe.optimiser.channels_last else torch.contiguous_format
        for network in (self.fomm, self.discriminator):
            network.to(device, memory_format=memory)  # pyright: ignore[reportCallIssue]
        self.vgg: VggFeatures | None = None
        if recipe.losses.vgg_weights:
            self.vgg = load_vgg(recipe.losses.vgg_weights).to(device)
        self.optimisers = {
            name: torch.optim.Adam(
                list(network.parameters()),
                # a recorded step reads its rate from the device
                lr=torch.tensor(rate, device=device) if self.is_recorded else rate,
                betas=(recipe.optimiser.betas[0], recipe.optimiser.betas[1]),
                capturable=self.is_recorded,
                fused=True if device.type == "cuda" else None,
            )
            for name, network, rate in (
                ("generator", self.fomm.generator, recipe.schedule.lr_generator),
                ("kp_detector", self.fomm.kp_detector, recipe.schedule.lr_keypoints),
                ("discriminator", self.discriminator, recipe.schedule.lr_discriminator),
            )
        }
        self.set_batch_norm_momentum(recipe.optimiser.bn_momentum)
        self.train()

    @property
    def is_recorded(self) -> bool:
        """Whether steps are to be replayed as one recording of GPU work."""
        return self.recipe.optimiser.cuda_graph and self.device.type == "cuda"

    @property
    def is_adversarial(self) -> bool:
        """Whether the discriminator is trained at all."""
        return self.recipe.losses.generator_gan != 0

    def networks(self) -> dict[str, nn.Module]:
        """The three networks under their names in a checkpoint."""
        parts = (self.fomm.generator, self.fomm.kp_detector, self.discriminator)
        return dict(zip(NETWORKS, parts, strict=True))

    def train(self) -> None:
        """Batch norms use the batch; gradients flow."""
        self.fomm.train()
        self.discriminator.train()

    def set_batch_norm_momentum(self, momentum: float) -> None:
        """For every batch norm of the two networks that animate."""
        for module in self.fomm.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def set_rates(self, factor: float) -> None:
        """Set each learning rate to `factor` times its recipe value."""
        schedule = self.recipe.schedule
        rates = (schedule.lr_generator, schedule.lr_keypoints, schedule.lr_discriminator)
        for name, rate in zip(NETWORKS, rates, strict=True):
            for group in self.optimisers[name].param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights; the terms' weighted values, () each, on the device."""
        with torch.backends.cudnn.flags(
            enabled=True,
            benchmark=self.device.type == "cuda",
            deterministic=False,
            allow_tf32=self.recipe.optimiser.tf32,
        ):
            return self._step(batch)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        pass_ = self.forward(batch)
        terms = self.terms(batch, pass_)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        if self.recipe.optimiser.grad_clip:
            nn.utils.clip_grad_norm_(self.fomm.parameters(), self.recipe.optimiser.grad_clip)
        self.optimisers["generator"].step()
        self.optimisers["kp_detector"].step()
        if self.is_adversarial:
            terms["discriminator"] = self._discriminator_step(batch, pass_)
        return {"total": total.detach(), **{name: term.detach() for name, term in terms.items()}}

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where the recipe asks for it and there is a GPU."""
        if self.recipe.optimiser.autocast == "bf16" and self.device.type == "cuda":
            # casts of weights are not cached: a recorded step must make them itself
            return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def forward(self, batch: Batch, *, fomm: Fomm | None = None) -> Pass:
        """Keypoints of all images in one batch, motion carried over, and the animation.

        Args:
            batch: the pairs.
            fomm: another model than the one in training, such as its average.
        """
        fomm = self.fomm if fomm is None else fomm
        images = [batch.source, batch.driving]
        if batch.initial is not None:
            images.append(batch.initial)
        keypoints = fomm.kp_detector(torch.cat(images))  # outside autocast: float32
        rows = len(batch.source)
        source, driving = keypoints[:rows], keypoints[rows : 2 * rows]
        if batch.initial is not None:
            own = rows - batch.cross_rows
            carried = carry_over(source[own:], driving[own:], keypoints[2 * rows :])
            driving = Keypoints.cat([driving[:own], carried])
        with self.autocast():
            animation = fomm.generator(batch.source, source, driving)
        return Pass(keypoints=keypoints, driving=driving, animation=animation)

    def terms(self, batch: Batch, pass_: Pass) -> dict[str, Tensor]:
        """Every weighted term of the generator's and keypoint detector's loss."""
        weights, animation = self.recipe.losses, pass_.animation
        terms: dict[str, Tensor] = {}
        prediction = animation.prediction.float()
        wanted = losses.image_pyramid(batch.target, weights.scales)
        found = losses.image_pyramid(prediction, weights.scales)
        regions = self._regions(batch, wanted)
        if self.vgg is not None:
            terms["perceptual"] = sum_of(
                losses.perceptual_distance(
                    found[s], wanted[s], vgg=self.vgg, weights=weights.perceptual
                )
                for s in weights.scales
            )
        else:
            terms["structure"] = weights.structure * sum_of(
                losses.structure_distance(
                    found[s],
                    wanted[s],
                    region=regions.get(s),
                    gradient_weight=weights.gradient,
                    ssim_weight=weights.ssim,
                )
                for s in weights.scales
            )
        terms |= self._motion_terms(batch, animation, wanted, regions)
        terms |= self._keypoint_terms(batch, pass_.keypoints)
        if self.is_adversarial:
            terms |= self._adversarial_terms(pass_, found, wanted)
        return terms

    def _regions(self, batch: Batch, pyramid: dict[float, Tensor]) -> dict[float, Tensor]:
        strength = self.recipe.losses.region_strength
        if not strength or batch.region_points is None:
            return {}
        return {
            scale: losses.region_weights(
                batch.region_points,
                *images.shape[-2:],
                sigma=self.recipe.losses.region_sigma,
                strength=strength,
            )
            for scale, images in pyramid.items()
        }

    def _motion_terms(
        self,
        batch: Batch,
        animation: Animation,
        wanted: dict[float, Tensor],
        regions: dict[float, Tensor],
    ) -> dict[str, Tensor]:
        """Terms on the moved source: is the motion right, and does occlusion know where not."""
        weights = self.recipe.losses
        terms: dict[str, Tensor] = {}
        if not (weights.warped or weights.occlusion):
            return terms
        deformed = animation.deformed
        assert deformed is not None  # the generator's training path always gives it
        deformed = deformed.float()
        if weights.warped:
            quarter = losses.image_pyramid(deformed, (0.25,))[0.25]
            target = wanted.get(0.25)
            if target is None:
                target = losses.image_pyramid(batch.target, (0.25,))[0.25]
            difference = (quarter - target).abs()
            terms["warped"] = weights.warped * (difference * regions.get(0.25, 1.0)).mean()
        if weights.occlusion and animation.occlusion_map is not None:
            open_share = losses.occlusion_target(deformed, batch.target)
            height, width = animation.occlusion_map.shape[-2:]
            open_share = F.adaptive_avg_pool2d(open_share, (height, width))
            found = resize(animation.occlusion_map.float(), height, width)
            terms["occlusion"] = weights.occlusion * F.l1_loss(found, open_share)
        return terms

    def _keypoint_terms(self, batch: Batch, keypoints: Keypoints) -> dict[str, Tensor]:
        weights = self.recipe.losses
        terms: dict[str, Tensor] = {}
        warp = batch.warp
        if warp is not None:
            rows = len(batch.source)
            frames = warp.frames(batch.driving, align_corners=self.recipe.align_corners)
            warped = self.fomm.kp_detector(frames)
            driving = keypoints[rows : 2 * rows]
            if weights.equivariance_value:
                terms["equivariance_value"] = weights.equivariance_value * (
                    losses.equivariance_value(driving.value, warp.coordinates(warped.value))
                )
            if weights.equivariance_jacobian and warped.jacobian is not None:
                assert driving.jacobian is not None
                mapped = product_2x2(warp.jacobian(warped.value), warped.jacobian)
                terms["equivariance_jacobian"] = weights.equivariance_jacobian * (
                    losses.equivariance_jacobian(driving.jacobian, mapped)
                )
        if weights.points and batch.points is not None:
            share = weights.points * batch.supervision
            terms["points"] = share * F.l1_loss(keypoints.value, batch.points)
        if weights.point_jacobians and batch.jacobians is not None:
            assert keypoints.jacobian is not None
            share = weights.point_jacobians * batch.supervision
            terms["point_jacobians"] = share * F.l1_loss(keypoints.jacobian, batch.jacobians)
        return terms

    def _adversarial_terms(
        self, pass_: Pass, found: dict[float, Tensor], wanted: dict[float, Tensor]
    ) -> dict[str, Tensor]:
        weights = self.recipe.losses
        driving = Keypoints(pass_.driving.value.detach())
        with self.autocast():
            fake = self.discriminator(self._with_scales(found), driving)
            real = self.discriminator(self._with_scales(wanted), driving)
        terms = {
            "generator_gan": weights.generator_gan
            * sum_of(losses.generator_gan(j.prediction_map.float()) for j in fake.values())
        }
        if any(weights.feature_matching):
            terms["feature_matching"] = sum_of(
                losses.feature_matching(
                    real[s].features, fake[s].features, weights=weights.feature_matching
                )
                for s in fake
            )
        return terms

    def _discriminator_step(self, batch: Batch, pass_: Pass) -> Tensor:
        """The discriminator's own update, on the same prediction, detached."""
        optimiser = self.optimisers["discriminator"]
        optimiser.zero_grad(set_to_none=True)  # what the generator's loss left there
        driving = Keypoints(pass_.driving.value.detach())
        found = {1.0: pass_.animation.prediction.detach().float()}
        with self.autocast():
            fake = self.discriminator(self._with_scales(found), driving)
            real = self.discriminator(self._with_scales({1.0: batch.target}), driving)
        loss = self.recipe.losses.discriminator_gan * sum_of(
            losses.discriminator_gan(real[s].prediction_map.float(), fake[s].prediction_map.float())
            for s in real
        )
        loss.backward()
        optimiser.step()
        return loss

    def _with_scales(self, pyramid: dict[float, Tensor]) -> dict[float, Tensor]:
        """The pyramid with every scale that the discriminator looks at."""
        absent = [scale for scale in self.discriminator.scales if scale not in pyramid]
        return pyramid | losses.image_pyramid(pyramid[1.0], absent)


def carry_over(source: Keypoints, driving: Keypoints, initial: Keypoints) -> Keypoints:
    """`transfer(mode="rel_adapt")` row by row on the device, with gradients.

    The scale is a constant for the gradient. It is bounded, for keypoints that have not yet
    spread out.
    """
    area = losses.hull_areas(source.value.detach()), losses.hull_areas(initial.value.detach())
    scale = (area[0] / area[1].clamp_min(1e-3)).sqrt().clamp(0.5, 2.0)[:, None, None]
    value = scale * (driving.value - initial.value) + source.value
    if source.jacobian is None or driving.jacobian is None or initial.jacobian is None:
        return Keypoints(value)
    change = product_2x2(driving.jacobian, inverse_2x2(initial.jacobian))
    return Keypoints(value, product_2x2(change, source.jacobian))


def start_as_identity(fomm: Fomm) -> None:
    """Let a generator without down blocks begin by passing colours through.

    The first layer keeps the picture and its negative in its first six channels (ReLU cuts one
    half of each), the last adds them up again; residual blocks begin small.
    """
    generator = fomm.generator
    first, final = generator.first.conv, generator.final
    channels = fomm.config.num_channels
    middle = first.kernel_size[0] // 2
    with torch.no_grad():
        first.weight[: 2 * channels].zero_()
        final.weight.mul_(0.1)
        assert first.bias is not None
        assert final.bias is not None
        first.bias[: 2 * channels].zero_()
        final.bias.zero_()
        for channel in range(channels):
            for sign, at in ((1.0, channel), (-1.0, channels + channel)):
                first.weight[at, channel, middle, middle] = sign
                final.weight[channel, at].zero_()
                # 0.9 undoes the batch norm's division by about 0.25 through the sigmoid's slope
                final.weight[channel, at, middle, middle] = 0.9 * sign
        for block in generator.bottleneck:
            block.conv2.weight.mul_(0.1)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def sum_of(values: Iterator[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack(list(values)).sum()
