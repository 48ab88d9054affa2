"""From surface samples to light: skin, hair, cloth, then the features, then the lamp.

In: `Fragments`. Out: linear light (P, 3). What is painted is fixed to the head at rest, except the
mouth, which is fixed to the moved jaw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfm_engine.synthetic import features
from dfm_engine.synthetic.fragments import Fragments
from dfm_engine.synthetic.head import bell, hair_line, hairiness, smooth
from dfm_engine.synthetic.mesh import Part

__all__ = ["paint"]


def paint(at: Fragments) -> Tensor:
    """Colour every sample, (P, 3) linear light."""
    colour = torch.zeros_like(at.rest)
    shine = torch.zeros_like(at.rest[:, 0])
    wet = torch.zeros_like(shine)
    hair, cover, strands = _find_hair(at)
    bare = (at.part == Part.HEAD) | (at.part == Part.EAR) | (at.part == Part.NECK)
    bare[hair] &= cover < 1.0

    skin = torch.nonzero(bare)[:, 0]
    colour[skin], shine[skin] = _skin(at.take(skin))
    face = torch.nonzero(bare & (at.part == Part.HEAD) & (at.rest[:, 2] > 0.2))[:, 0]
    here = at.take(face)
    off_x, y = here.rest[:, 0].abs() - here.who("eye_x"), here.rest[:, 1]
    moved_x, moved_y = here.expressed[:, 0].abs(), here.expressed[:, 1] - here.who("mouth_y")

    def near(mask: Tensor) -> tuple[Tensor, Fragments]:
        chosen = face[mask]
        return chosen, at.take(chosen)

    index, sub = near((off_x.abs() < 0.24) & ((y - here.who("eye_y")).abs() < 0.22))
    colour[index], wet[index] = features.paint_eyes(sub, colour[index])
    index, sub = near((off_x.abs() < 0.27) & ((y - here.who("brow_y") + 0.06).abs() < 0.17))
    colour[index] = features.paint_brows(sub, colour[index])
    index, sub = near((moved_x < 0.42) & (moved_y > -0.16) & (moved_y < 0.42))
    colour[index], wet[index] = features.paint_mouth(sub, colour[index])

    _paint_hair(at.take(hair), hair, cover, strands, colour, shine)
    cloth = torch.nonzero(at.part == Part.CLOTH)[:, 0]
    here = at.take(cloth)
    weave = here.noise(here.rest[:, 0] * 0.7, here.rest[:, 1] * 0.7)
    colour[cloth] = here.who("cloth") * (1 + 0.05 * weave[:, :1] + 0.06 * weave[:, 1:])
    frame = torch.nonzero(at.part == Part.FRAME)[:, 0]
    colour[frame] = at.take(frame).who("glasses_colour").expand(len(frame), 3)
    return _light(at, colour, shine, wet)


def _skin(at: Fragments) -> tuple[Tensor, Tensor]:
    """Bare skin with its redness, folds, hollows and beard; returns colour and gloss."""
    who = at.who
    x, y, z = at.rest.unbind(-1)
    side = x.abs()
    ahead = smooth(0.05, 0.4, z) * (at.part == Part.HEAD).float()
    grain = at.noise(x * 0.9 + 0.31 * z, y * 0.9)
    tone = who("skin") * (1.0 + 0.035 * grain[:, :1] + 0.030 * grain[:, 1:])

    cheeks = bell(side - 0.40, 0.19) * bell(y - 0.30, 0.17)
    nose = bell(x, 0.12) * bell(y - who("nose_y"), 0.12)
    red = ahead * (0.10 * cheeks + 0.10 * nose + at.does("blush") * (0.55 * cheeks + 0.25 * nose))
    red = red + 0.10 * (at.part == Part.EAR)
    spots = smooth(0.9, 1.5, grain[:, 1]) * who("freckles") * (cheeks + nose).clamp(max=1)
    tone = tone * torch.stack((1 + 0.25 * red, 1 - 0.62 * red, 1 - 0.55 * red), dim=1)
    tone = tone * (1.0 - 0.35 * spots * ahead)[:, None]

    # hollows that a local light model does not darken
    eye_x, eye_y, nose_y = who("eye_x"), who("eye_y"), who("nose_y")
    shade = 0.20 * bell(side - eye_x, 0.19) * bell(y - eye_y + 0.03, 0.12)
    shade = shade + 0.22 * bell(side - 0.13, 0.06) * bell(y - eye_y, 0.10)
    shade = shade + 0.34 * bell(x, who("nose_width") * 1.1) * bell(y - nose_y - 0.10, 0.045)
    flank = bell(side - who("nose_width") * 1.12, 0.030) * bell(y - nose_y - 0.01, 0.07)
    shade = shade + 0.22 * flank
    nostril = bell(side - who("nose_width") * 0.48, 0.030) * bell(y - nose_y - 0.070, 0.020)
    shade = shade + 0.62 * nostril
    smile, age = at.does("smile"), who("age")
    fold_x = who("nose_width") + 0.045 + (0.22 + 0.05 * smile) * (y - nose_y)
    fold = bell(side - fold_x, 0.022) * smooth(nose_y - 0.02, nose_y + 0.06, y)
    fold = fold * smooth(who("mouth_y") + 0.06, who("mouth_y") - 0.08, y)
    shade = shade + fold * (0.05 + 0.10 * age + 0.20 * smile)
    low_y = at.expressed[:, 1]
    lips = who("mouth_y") + 0.25 * at.does("jaw") + who("lip_lower")
    shade = shade + 0.20 * bell(x, 0.16) * bell(low_y - lips - 0.035, 0.030)
    wrinkle = torch.sin(y * 75.0) ** 2 * bell(x, 0.35) * smooth(-0.28, -0.36, y)
    wrinkle = wrinkle * smooth(-0.56, -0.48, y)
    shade = shade + wrinkle * (0.03 * age + 0.13 * at.does("brow").clamp(min=0.0))
    tone = tone * (1.0 - shade * ahead).clamp(min=0.1)[:, None]

    # a beard: below a line from the sideburns to the corners of the mouth, and the moustache
    mouth_y = who("mouth_y")
    edge = mouth_y - 0.01 - 0.85 * (side - who("mouth_width") * 0.95).clamp(min=0.0)
    beard = smooth(-0.05, 0.06, y - edge)
    lip_top = smooth(mouth_y - 0.16, mouth_y - 0.11, y) * smooth(0.30, 0.22, side)
    beard = torch.maximum(beard, lip_top) * (at.part == Part.HEAD) * smooth(-0.25, 0.0, z)
    hairs = (0.85 + 0.15 * grain[:, 1]).clamp(0, 1)
    amount = beard * (0.34 * who("stubble") + 0.92 * who("beard") * hairs)
    tone = tone + (who("hair") * 0.8 - tone) * amount[:, None]

    neck = (at.part == Part.NECK).float()
    tone = tone * (1.0 - neck * (0.70 - 0.60 * smooth(0.90, 1.40, y)))[:, None]
    ear = (at.part == Part.EAR).float() * bell(y - 0.12, 0.10) * bell(z + 0.01, 0.07)
    tone = tone * (1.0 - 0.35 * ear)[:, None]
    return tone, 0.35 * (1.0 - amount) * (1.0 - 0.6 * neck)


def _find_hair(at: Fragments) -> tuple[Tensor, Tensor, Tensor]:
    """Samples with hair: their numbers (Q,), cover (Q,) in 0..1, and strand noise (Q, 2)."""
    index = torch.nonzero((at.part == Part.HEAD) | (at.part == Part.HAIR))[:, 0]
    here = at.take(index)
    x, y, z = here.rest.unbind(-1)
    line = hair_line(here.looked_up_who(), x, z, 0.0)
    grows = (line - y > -0.12) & (here.who("has_hair") > 0)
    index = index[grows | (here.part == Part.HAIR)]
    here = at.take(index)
    x, y, z = here.rest.unbind(-1)
    around = torch.atan2(x, z + 0.05)
    wave = 0.05 * here.who("waves") * torch.sin(7.0 * y + 2.0 * around)
    strands = here.noise(around * 0.62 + wave, y * 0.16 + 0.5)
    soft = 0.022 + 0.5 * here.pixel
    cover = hairiness(here.looked_up_who(), here.rest, soft=soft, wisps=strands[:, 1])
    return index, torch.where(here.part == Part.HAIR, 1.0, cover), strands


def _paint_hair(
    at: Fragments, index: Tensor, cover: Tensor, strands: Tensor, colour: Tensor, shine: Tensor
) -> None:
    """Lay strands over the samples `index` of `colour` and `shine`, in place."""
    x, y, z = at.rest.unbind(-1)
    on_scalp = at.part == Part.HEAD
    tone = at.who("hair") * (1.0 + 0.20 * strands[:, :1] + 0.26 * strands[:, 1:]).clamp(min=0.3)
    # the parting: a line of scalp from the hairline to the crown
    line = bell(x - 0.30 * at.who("parting"), 0.014 + 0.4 * at.pixel) * smooth(0.0, 0.3, z)
    line = line * ((y < -0.3) & (at.who("parting") != 0) & on_scalp)
    tone = tone * (1.0 - 0.45 * line)[:, None]
    cropped = smooth(0.06, 0.02, at.who("hair_thick")) * on_scalp  # the skin shines through
    base = torch.lerp(tone, at.who("skin").expand_as(tone), (0.30 * cropped)[:, None])
    colour[index] = torch.lerp(colour[index], base, cover[:, None])
    shine[index] = shine[index] * (1.0 - cover) + 0.5 * cover * at.who("hair")[:, 1].sqrt()


def _light(at: Fragments, colour: Tensor, shine: Tensor, wet: Tensor) -> Tensor:
    """One lamp with soft fall-off, a sky, a faint fill from the other side, a small highlight."""
    lamp = at.who("light")
    normal = at.normal
    facing = (normal * lamp).sum(-1)
    soft = ((facing + 0.28) / 1.28).clamp(min=0.0)
    ambient = at.who("ambient")
    sky = ambient * (0.88 - 0.18 * normal[:, 1])
    fill = 0.10 * (-normal[:, 0] * lamp[:, 0].sign()).clamp(min=0.0)
    warm = at.who("warmth")
    lamp_tint = torch.stack((1.0 + 0.06 * warm, torch.ones_like(warm), 1.0 - 0.10 * warm), dim=-1)
    # light that has passed through skin is red: warm the terminator
    blood = bell(facing - 0.05, 0.25) * (at.part != Part.CLOTH)
    glow = torch.stack((1.0 + 0.10 * blood, 1.0 - 0.02 * blood, 1.0 - 0.05 * blood), dim=-1)
    light = (sky + fill)[:, None] + ((1.0 - ambient) * 1.30 * soft)[:, None] * lamp_tint
    light = light * glow
    inner = wet[:, None]
    light = torch.lerp(light, (0.75 * light + 0.2), inner)
    half = torch.nn.functional.normalize(lamp + lamp.new_tensor((0.0, 0.0, 1.0)), dim=-1)
    spot = (normal * half).sum(-1).clamp(min=0.0) ** 16
    lit = colour * light + (0.12 * shine * spot * (1.0 - wet))[:, None]
    return lit * at.who("exposure")[:, None]
