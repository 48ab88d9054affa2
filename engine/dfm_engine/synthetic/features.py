"""Eyes, brows and mouth, painted on the skin; every edge is a ramp one pixel wide.

Shapes are curves y(x) around a feature's centre, in head units; see `landmarks.py` for the points
that follow them. Colours are linear light. Each function takes the samples near the feature and
the skin's colour there, and returns the painted colour.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfm_engine.synthetic.fragments import Fragments
from dfm_engine.synthetic.head import bell, rotation, smooth

__all__ = ["brow_line", "lid_edges", "lip_edges", "paint_brows", "paint_eyes", "paint_mouth"]

BROW_RAISE = 0.115  # head units at brow = 1
_DARK = (0.012, 0.008, 0.007)
_WHITE = (0.72, 0.70, 0.68)
_TOOTH = (0.78, 0.74, 0.66)
_TONGUE = (0.42, 0.11, 0.11)
_THROAT = (0.035, 0.008, 0.008)

Values = dict[str, Tensor]


class Lids(NamedTuple):
    """Heights of an eye's edges relative to its slanted axis; negative is up."""

    upper: Tensor
    lower: Tensor
    open_upper: Tensor  # where the upper lid is when the eye is open


class Lips(NamedTuple):
    """Heights y of the four lip edges, and the half width of the mouth."""

    upper_outer: Tensor
    upper_inner: Tensor
    lower_inner: Tensor
    lower_outer: Tensor
    half_width: Tensor


def lid_edges(who: Values, does: Values, across: Tensor) -> Lids:
    """Lid heights at `across`, -1 inner corner .. 1 outer corner."""
    high = (1.0 - across.abs().clamp(max=1.0) ** 2.3).clamp(min=0.0)
    low = (1.0 - across.clamp(-1, 1) ** 2).clamp(min=0.0)
    gaze = does["gaze_y"]
    follow = 1.0 - 0.45 * gaze.clamp(min=0.0) - 0.08 * gaze.clamp(max=0.0)
    lift = (1.0 + 0.38 * does["eye_wide"]) * follow
    open_upper = -who["eye_height"] * lift * high
    lower = who["eye_height"] * (0.72 + 0.1 * does["eye_wide"] - 0.22 * does["smile"]) * low
    shut = 0.8 * lower
    return Lids(torch.lerp(open_upper, shut, does["blink"]), lower, open_upper)


def brow_line(who: Values, does: Values, along: Tensor) -> Tensor:
    """Height y of a brow's middle line at `along`, 0 inner end .. 1 outer end."""
    arch = who["brow_arch"] * torch.sin(torch.pi * along.clamp(0, 1) ** 1.3)
    raised = BROW_RAISE * does["brow"] * (1.0 - 0.15 * along)
    return who["brow_y"] - arch - raised + who["brow_tilt"] * (along - 0.5) + 0.035 * along**2


def lip_edges(who: Values, does: Values, x: Tensor) -> Lips:
    """Lip edges at x, after the expression."""
    smile, jaw, press = does["smile"], does["jaw"], does["press"]
    half = who["mouth_width"] * (
        1.0 + 0.18 * smile + 0.15 * does["mouth_width"] - 0.10 * jaw + 0.05 * press
    )
    xn = x / half
    body = (1.0 - xn * xn).clamp(min=1e-4)
    middle = who["mouth_y"] + 0.010 * smile - (0.065 * smile + who["mouth_curve"]) * xn * xn
    gap = 0.31 * jaw * body**0.55 + 0.065 * smile * (1.0 - press) * body**0.8
    upper_inner, lower_inner = middle - 0.2 * gap, middle + 0.8 * gap
    thin = (1.0 - 0.5 * press) * (1.0 - 0.22 * smile)
    bow = 1.0 - 0.20 * bell(xn, 0.12) + 0.12 * bell(xn.abs() - 0.24, 0.15)
    return Lips(
        upper_inner - who["lip_upper"] * thin * bow * body**0.6,
        upper_inner,
        lower_inner,
        lower_inner + who["lip_lower"] * thin * body**0.75,
        half,
    )


def _values(at: Fragments, who: tuple[str, ...], does: tuple[str, ...]) -> tuple[Values, Values]:
    return {n: at.who(n) for n in who}, {n: at.does(n) for n in does}


def _cover(colour: Tensor, over: Tensor | tuple[float, ...], alpha: Tensor) -> Tensor:
    paint = over if isinstance(over, Tensor) else colour.new_tensor(over)
    return colour + (paint - colour) * alpha[:, None]


def paint_eyes(at: Fragments, skin: Tensor) -> tuple[Tensor, Tensor]:
    """Paint both eyes.

    Returns:
        Colour (P, 3) and how much of it is eyeball, (P,): wet, and lit by its own shading.
    """
    who, does = _values(
        at,
        ("eye_x", "eye_y", "eye_width", "eye_height", "eye_tilt", "iris_radius", "make_up"),
        ("blink", "eye_wide", "gaze_x", "gaze_y", "smile"),
    )
    px = at.pixel
    x, side = at.rest[:, 0], at.rest[:, 0].sign()
    out = x.abs() - who["eye_x"]
    y = at.rest[:, 1] - who["eye_y"] + who["eye_tilt"] * out
    across = out / who["eye_width"]
    lids = lid_edges(who, does, across)
    within = smooth(-0.5, 0.5, (1.0 - across.abs()) * who["eye_width"] / px)
    inside = smooth(-0.6, 0.6, (y - lids.upper) / px) * smooth(-0.6, 0.6, (lids.lower - y) / px)
    inside = inside * within

    # the lid: skin between the crease and the lash line, a little darker, more so when made up
    blink = does["blink"]
    crease = 1.45 * lids.open_upper - 0.012
    on_lid = smooth(-0.02, 0.01, y - crease) * smooth(-0.015, 0.01, lids.upper - y) * within
    colour = skin * (1.0 - on_lid * (0.10 + 0.16 * who["make_up"]))[:, None]
    reach = smooth(1.25, 0.95, across.abs())
    fold = bell(y - crease, 0.012 + 0.4 * px) * reach * (0.42 - 0.2 * blink)
    pouch = bell(y - 1.5 * lids.lower - 0.022, 0.018) * reach * (0.10 + 0.14 * does["smile"])
    colour = colour * (1.0 - fold - pouch)[:, None]

    # the ball
    iris_x = x - side * who["eye_x"] - 0.055 * does["gaze_x"]
    iris_y = y + 0.004 - 0.046 * does["gaze_y"]
    radius = torch.hypot(iris_x, iris_y)
    big = who["iris_radius"]
    white = at.rest.new_tensor(_WHITE) * (1.0 - 0.30 * across**2)[:, None]
    iris = at.who("iris") * (0.75 + 0.9 * smooth(-0.5, 1.0, iris_y / big))[:, None]
    iris = iris * (1.0 - 0.6 * smooth(0.72, 1.0, radius / big))[:, None]
    ball = _cover(white, iris, smooth(-0.6, 0.6, (big - radius) / px))
    ball = _cover(ball, _DARK, smooth(-0.6, 0.6, (0.45 * big - radius) / px))
    ball = ball * (1.0 - 0.5 * bell((y - lids.upper).clamp(min=0.0), 0.035))[:, None]
    glint = torch.hypot(iris_x + 0.022, iris_y + 0.024)
    ball = _cover(ball, (1.0, 1.0, 1.0), 0.9 * smooth(-0.6, 0.6, (0.016 - glint) / px))
    colour = torch.lerp(colour, ball, inside[:, None])

    thick = 0.011 + 0.006 * who["make_up"] + 0.004 * blink + 0.25 * px
    lash = bell(y - lids.upper + 0.004, thick) * smooth(1.12, 0.98, across.abs())
    colour = _cover(colour, _DARK, lash * (0.75 + 0.15 * who["make_up"]))
    under = bell(y - lids.lower - 0.003, 0.010 + 0.25 * px) * smooth(1.05, 0.9, across.abs())
    colour = colour * (1.0 - under * (0.30 + 0.2 * who["make_up"]))[:, None]
    return colour, inside


def paint_brows(at: Fragments, skin: Tensor) -> Tensor:
    """Paint both brows, thinner outwards, in the hair's colour."""
    who, does = _values(at, ("brow_y", "brow_arch", "brow_tilt", "brow_thick", "eye_x"), ("brow",))
    inner = who["eye_x"] - 0.185
    along = (at.rest[:, 0].abs() - inner) / 0.37
    middle = brow_line(who, does, along)
    half = who["brow_thick"] * (1.0 - 0.62 * along.clamp(0, 1) ** 1.5)
    half = half * smooth(-0.06, 0.12, along)
    strands = at.noise(at.rest[:, 0] * 1.1 + at.rest[:, 1] * 0.7, at.rest[:, 1] * 0.3)[:, 1]
    soft = 0.6 * at.pixel + 0.008
    cover = smooth(-1.0, 1.0, (half - (at.rest[:, 1] - middle).abs()) / soft)
    cover = cover * smooth(-0.06, 0.08, along) * smooth(1.06, 0.9, along)
    cover = (cover * (0.88 + 0.12 * strands)).clamp(0, 1)
    return _cover(skin, at.who("hair") * 0.62, cover)


def paint_mouth(at: Fragments, skin: Tensor) -> tuple[Tensor, Tensor]:
    """Paint lips, teeth, tongue and throat.

    The inside is seen through the lips as through a window: it is looked up where the line of
    sight meets it, behind the lips, so it shifts as the head turns.

    Returns:
        Colour (P, 3) and how much of it is the inside, (P,): less lit than the face.
    """
    who, does = _values(
        at,
        ("mouth_y", "mouth_width", "mouth_curve", "lip_upper", "lip_lower"),
        ("smile", "jaw", "press", "mouth_width"),
    )
    px = at.pixel
    x, y = at.expressed[:, 0], at.expressed[:, 1]
    lips = lip_edges(who, does, x)
    xn = x / lips.half_width
    within = smooth(-0.7, 0.7, (1.0 - xn.abs()) * lips.half_width / px)

    def between(top: Tensor, bottom: Tensor) -> Tensor:
        return smooth(-0.6, 0.6, (y - top) / px) * smooth(-0.6, 0.6, (bottom - y) / px) * within

    soft = 0.8 * px + 0.006
    whole = smooth(-1.0, 1.0, (y - lips.upper_outer) / soft) * smooth(
        -1.0, 1.0, (lips.lower_outer - y) / soft
    )
    middle = 0.5 * (lips.upper_inner + lips.lower_inner)
    shade = torch.where(y < middle, 0.80, 1.0 + 0.12 * bell(y - lips.lower_inner - 0.022, 0.018))
    colour = torch.lerp(skin, at.who("lip") * shade[:, None], (whole * within)[:, None])

    gap = lips.lower_inner - lips.upper_inner
    inside = between(lips.upper_inner, lips.lower_inner) * smooth(0.3, 1.2, gap / px)
    sight = rotation(at.drawn.does)[:, 2]  # (B, 3) the viewing axis in head coordinates
    slant = at.per_frame(-sight[:, :2] / sight[:, 2:].clamp(min=0.3))
    tooth_x, tooth_y = x + 0.05 * slant[:, 0], y + 0.05 * slant[:, 1]
    deep_x, deep_y = x + 0.14 * slant[:, 0], y + 0.10 * slant[:, 1]

    throat = at.rest.new_tensor(_THROAT).expand(len(y), 3)
    drop = does["jaw"]
    tongue_y = lips.lower_inner - 0.005 - 0.06 * drop
    tongue = torch.hypot(
        deep_x / (0.62 * lips.half_width), (deep_y - tongue_y) / (0.02 + 0.09 * drop)
    )
    light = 0.55 + 0.45 * smooth(-0.10, 0.05, y - tongue_y)
    tinted = at.rest.new_tensor(_TONGUE) * light[:, None]
    filling = _cover(throat, tinted, smooth(1.1, 0.8, tongue) * smooth(0.1, 0.4, drop))

    arc = tooth_x / lips.half_width
    row = smooth(0.95, 0.80, arc.abs())
    upper_end = who["mouth_y"] + 0.038 - 0.05 * arc**2 - 0.02 * does["smile"] * arc**2
    upper = smooth(-0.6, 0.6, (upper_end - tooth_y) / px) * row
    seam = 1.0 - 0.12 * bell((tooth_x / 0.062 + 0.5) % 1.0 - 0.5, 0.12) * smooth(0.02, 0.008, px)
    enamel = at.rest.new_tensor(_TOOTH) * ((1.0 - 0.5 * arc**2) * seam)[:, None]
    lower_top = who["mouth_y"] + 0.245 * drop - 0.018
    lower = smooth(-0.6, 0.6, (tooth_y - lower_top) / px) * row * smooth(0.35, 0.6, drop)
    filling = _cover(filling, 0.7 * enamel, lower * 0.9)
    filling = _cover(filling, enamel, upper)
    shadow = 1.0 - 0.45 * bell((y - lips.upper_inner).clamp(min=0.0), 0.022)
    colour = torch.lerp(colour, filling * shadow[:, None], inside[:, None])

    thin = 0.008 + 0.45 * px
    seal = bell(y - middle, thin) * within * smooth(2.2, 0.6, gap / px)
    corner = bell(xn.abs() - 0.99, 0.07) * bell(y - middle, 0.014 + 0.4 * px)
    colour = colour * (1.0 - 0.72 * seal)[:, None] * (1.0 - 0.5 * corner)[:, None]
    return colour, inside
