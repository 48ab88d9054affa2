"""Any network of timm as a detector: its backbone, its pooling, its last linear layer made for two.

ResNets, Xception and EfficientNet pool the last feature map globally and put one linear layer
behind it, so their class activation map is exact. For other nets that is tried out, not assumed.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from dataclasses import replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfm_engine.detect.detector import Cam, DetectorSpec, ForgeryDetector
from dfm_engine.errors import UsageError

log = logging.getLogger(__name__)


class TimmNet(ForgeryDetector):
    """A timm model with two logits.

    Raises:
        UsageError: its last layer is not one linear layer behind `forward_head`, or it does not
            take this input size.
    """

    def __init__(self, spec: DetectorSpec, architecture: str, *, is_known: bool) -> None:
        super().__init__(spec)
        options: dict[str, Any] = {}
        if not is_known and timm_config(architecture).input_size[1] != spec.input_px:
            options["img_size"] = spec.input_px
        try:
            self.net: Any = timm.create_model(architecture, num_classes=spec.logits, **options)
        except TypeError:  # convolutional nets take any size and no img_size
            self.net = timm.create_model(architecture, num_classes=spec.logits)
        if not is_known:
            self.spec = replace(spec, cam=self._try_out())

    @property
    def head(self) -> nn.Linear:
        """The linear layer."""
        return self.net.get_classifier()

    def features(self, images: Tensor) -> Tensor:
        """As timm's `forward_features` gives them."""
        return self.net.forward_features(images)

    def embed(self, features: Tensor) -> Tensor:
        """(B, D)."""
        return self.net.forward_head(features, pre_logits=True)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """From timm's, torchvision's, Cadene's and FaceForensics++' files.

        A head for more classes than ours is left out, and the seeded one stays.
        """
        if state and all(key.startswith("net.") for key in state):  # our own
            state = {key.removeprefix("net."): value for key, value in state.items()}
        head = next(name for name, module in self.net.named_modules() if module is self.head)
        wanted = self.net.state_dict()
        result: dict[str, Tensor] = {}
        for key, value in state.items():
            key = re.sub(r"^last_linear(\.\d+)?\.", f"{head}.", key)  # Cadene; FF++ with dropout
            if key in wanted and wanted[key].ndim == 4 and value.ndim == 2:
                value = value[:, :, None, None]  # Cadene's pointwise convolutions
            result[key] = value
        weight = result.get(f"{head}.weight")
        if weight is None or len(weight) > self.spec.logits:
            classes = "no" if weight is None else len(weight)
            log.info(
                "%s: the file's head has %s classes; a seeded one stays", self.spec.name, classes
            )
            for key in (f"{head}.weight", f"{head}.bias"):
                result[key] = wanted[key]
        return {f"net.{key}": value for key, value in result.items()}

    def cam(self, features: Tensor) -> Tensor:
        """See `ForgeryDetector.logits_and_cam`."""
        if self.spec.cam == "exact":
            return F.conv2d(features, self.head.weight[:, :, None, None])
        with torch.enable_grad():
            leaf = features.detach().clone().requires_grad_()
            logits = self.head(self.embed(leaf))
            maps = [
                self._as_map(torch.autograd.grad(logit.sum(), leaf, retain_graph=True)[0] * leaf)
                for logit in logits.unbind(1)
            ]
        maps = torch.stack([one.sum(1) for one in maps], 1).detach()
        return maps * (maps.shape[2] * maps.shape[3])

    def _as_map(self, values: Tensor) -> Tensor:
        """Feature maps or tokens as (B, C, h, w); class tokens stand nowhere and are left out."""
        if values.ndim == 4:
            is_first = values.shape[1] == self.net.num_features
            return values if is_first else values.permute(0, 3, 1, 2)
        tokens = values[:, getattr(self.net, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1]:
            raise UsageError(f"{self.spec.name}: {tokens.shape[1]} tokens are no square map")
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    @torch.no_grad()
    def _try_out(self) -> Cam:
        """One pass over noise: is the head linear, and is the pooling a global mean?"""
        name, side = self.spec.name, self.spec.input_px
        was_training = self.training
        self.eval()
        noise = torch.Generator().manual_seed(0)
        images = torch.randn(1, 3, side, side, generator=noise)
        try:
            features = self.features(images)
            embedding = self.embed(features)
            wanted = self.net(images)
            head = self.head
            if not isinstance(head, nn.Linear) or not torch.allclose(
                head(embedding), wanted, atol=1e-4, rtol=1e-4
            ):
                raise UsageError(
                    f"timm model {name!r}: its head is a {type(head).__name__} that cannot be "
                    "taken apart into an embedding and one linear layer; use another model"
                )
        except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
            raise UsageError(
                f"timm model {name!r} does not run on one picture of {side} px "
                f"({str(error).splitlines()[0]}); it is no image classifier of that size"
            ) from error
        finally:
            self.train(was_training)
        is_mean = features.ndim == 4 and features.shape[:2] == embedding.shape
        if is_mean and torch.allclose(features.mean((2, 3)), embedding, atol=1e-5, rtol=1e-4):
            return "exact"
        return "gradient"


def timm_config(architecture: str) -> Any:
    """The facts that timm has of a model, by `name` or `name.tag`.

    Raises:
        UsageError: timm has no such model.
    """
    try:
        config = timm.get_pretrained_cfg(architecture)
    except (RuntimeError, KeyError):
        config = None
    if config is None or not timm.is_model(architecture):
        own = ["mesoinception4", "meso4", "xception", "small-cnn"]
        near = difflib.get_close_matches(architecture, own, n=2, cutoff=0.5)
        near = near or difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
        raise UsageError(f"no detector and no timm model is called {architecture!r}; {hint}")
    return config


def timm_spec(architecture: str, input_px: int | None = None) -> DetectorSpec:
    """The spec of a timm model by name: its own input size, mean and deviation."""
    config = timm_config(architecture)
    return DetectorSpec(
        name=architecture,
        input_px=input_px or config.input_size[1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        cam="gradient",  # until tried out
    )
