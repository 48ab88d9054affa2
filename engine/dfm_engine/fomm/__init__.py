"""The First Order Motion Model (Siarohin et al. 2019): a source image moves as a driving clip does.

    fomm = load("vox-cpk.pth.tar")
    features, kp_source = fomm.encode_source(source), fomm.keypoints(source)    # once per source
    kp_driving = fomm.keypoints(driving)                                # once per driving clip
    moved = fomm.transfer(kp_source, kp_driving, kp_driving[0], mode="rel_adapt")
    frames = fomm.animate(features, kp_source, moved).prediction

Five things that go wrong most often when this model is written anew, and where each is decided:

1. `grid_sample` changed its default under the published code. The weights were trained on torch
   1.0, which did what is now `align_corners=True`; the same code on torch >= 1.3 does False, and
   gives other pixels (up to 0.18 of full range). `load(..., align_corners=)` is the switch, True
   the default; `geometry.sample` is the only place that samples. `interpolate` was False always.
2. Sampling outside the picture reads zero, not the border (`geometry.sample`).
3. The keypoint heads have no padding: 64x64 features give a 58x58 heatmap, and coordinates span
   [-1, 1] over those 58 (`keypoints.soft_argmax`). All grids are corner-aligned:
   -1 is the centre of the first pixel (`geometry.coordinate_grid`).
4. The occlusion map multiplies the moved features once, before the residual blocks
   (`generator.Generator.animate`); nothing fills in behind it.
5. How frames are resized decides the keypoints. This project crops and resizes by its own
   convention, before anything here; frames come in as RGB in [0, 1], with no mean or deviation
   taken off (`dfm_engine.pixels`).

`reference` holds the same mathematics written out plainly, with every intermediate.
"""

from dfm_engine.fomm.best_frame import find_best_frame
from dfm_engine.fomm.config import FommConfig, parse_config
from dfm_engine.fomm.discriminator import Discriminator
from dfm_engine.fomm.model import Fomm, initialise, load, load_discriminator, save
from dfm_engine.fomm.transfer import TransferMode, transfer
from dfm_engine.fomm.values import Animation, Keypoints, SourceFeatures

__all__ = [
    "Animation",
    "Discriminator",
    "Fomm",
    "FommConfig",
    "Keypoints",
    "SourceFeatures",
    "TransferMode",
    "find_best_frame",
    "initialise",
    "load",
    "load_discriminator",
    "parse_config",
    "save",
    "transfer",
]
