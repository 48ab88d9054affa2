"""A recipe: every decision of a run, as frozen dataclasses read from and written to TOML.

Each section below is one table of the file and every field has a default, a unit in its name and a
one-line description (`field(..., metadata={"doc": ...})`, shown by `describe`). An unknown key is
an error that names the nearest known one. The resolved recipe is written beside the results.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from dfm_engine.errors import RecipeError


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a media file may ask of us; checked before memory is taken."""

    megapixels: float = _doc(36.0, "largest picture, width times height / 1e6")
    duration_s: float = _doc(600.0, "longest clip by its timestamps")
    frames: int = _doc(3000, "most frames decoded from one clip")
    short_side_px: int = _doc(20, "smallest width or height")
    file_gib: float = _doc(4.0, "largest file")
    decode_s: float = _doc(30.0, "most processor time spent on decoding one clip once")

    def __post_init__(self) -> None:
        _positive(
            self, "megapixels", "duration_s", "frames", "short_side_px", "file_gib", "decode_s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Faces:
    """How the face of a clip is found and framed."""

    every_n: int = _doc(5, "detect on every n-th frame, interpolate between")
    min_score: float = _doc(0.9, "a detection below this face probability is not a face")
    min_face_px: float = _doc(
        64.0, "smallest square around a face (longer side and margins), in decoded pixels"
    )
    min_found_share: float = _doc(0.9, "share of looked-at frames that must hold the face")
    enlarge: float = _doc(
        0.1, "margin on each side of the union box, as a share of its longer side"
    )

    def __post_init__(self) -> None:
        _positive(self, "every_n", "min_face_px")
        _share(self, "min_score", "min_found_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Which real clips may be a source, and which of their frames is the source image."""

    max_yaw_deg: float = _doc(10.0, "a source frame must be within this yaw")
    max_pitch_deg: float = _doc(10.0, "... this pitch")
    max_roll_deg: float = _doc(
        10.0, "... and this roll; the best frame counts, nothing is averaged"
    )
    allow_stills: bool = _doc(False, "pictures may be sources; they have no real twin")
    require_frontal: bool = _doc(True, "refuse a clip with no frame inside the three limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """The canonical clip (its frame size is the generator's)."""

    fps: int = _doc(25, "frames per second; other rates are resampled by timestamp")
    max_frames: int = _doc(250, "a driving clip is cut to this many frames")
    min_frames: int = _doc(8, "a driving clip shorter than this shows no action")

    def __post_init__(self) -> None:
        _positive(self, "fps", "max_frames", "min_frames")


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """How motion is carried from the driving clip to the source (FOMM, section 7.1 of its code)."""

    mode: Literal["abs", "rel", "rel_adapt", "rel_nojac"] = _doc(
        "rel_adapt", "absolute, relative, relative with adapted scale, relative without jacobian"
    )
    align_corners: bool = _doc(True, "how the published weights were trained (torch 1.0)")
    best_frame: bool = _doc(
        False, "start from the driving frame whose pose is nearest the source's"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many fakes, and from which pairs."""

    per_action: int = _doc(1000, "fakes to keep per action; 0 keeps every candidate that passes")
    fakes_per_source: int = _doc(
        1, "a source clip serves at most this many kept fakes; 0: no bound"
    )
    seed: int = _doc(0, "order of the candidates")
    batch_size: int = _doc(0, "generator rows per batch; 0 is chosen from the device when planning")
    max_quarantine_share: float = _doc(0.2, "above this share of unusable inputs the run exits 3")
    keep_rejects: bool = _doc(False, "keep the raw clip of an animation that the screen refused")

    def __post_init__(self) -> None:
        _share(self, "max_quarantine_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Keep or reject an animation; the gates' limits are in `screen.gates.THRESHOLDS`."""

    mode: Literal["enforce", "record"] = _doc("enforce", "drop what fails, or only record verdicts")
    min_face_share: float = _doc(0.95, "share of looked-at frames in which a face must be found")
    min_agreement: float = _doc(0.7, "correlation of driving and result motion signals")
    amplitude_low: float = _doc(
        0.4, "result motion, as a multiple of the driving's; true re-enactments reach 0.49 to 1.85"
    )
    amplitude_high: float = _doc(2.0, "... and at most this multiple")
    max_frozen_share: float = _doc(
        0.2, "frames equal to the one before, beyond the driving clip's share"
    )
    min_sharpness_ratio: float = _doc(0.3, "result sharpness over the source image's")
    every_n: int = _doc(2, "look for the face on every n-th frame")
    overlaps: tuple[str, ...] = _doc(
        (
            "surprise > open_mouth",
            "embarrassment > smile",
        ),
        "clip > gate: a clip of the first action may rightly pass the gate of the second",
    )
    thresholds: dict[str, dict[str, float]] = field(
        default_factory=dict, metadata={"doc": "per action: overrides of screen.THRESHOLDS"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """How the manifest's split column is filled."""

    kind: Literal["identity-disjoint", "paper-ordered", "random-video"] = _doc(
        "identity-disjoint", "by source identity; by list order (the authors); by clip"
    )
    train: float = _doc(0.70, "share of training")
    val: float = _doc(0.15, "share of validation; the rest is test")
    seed: int = _doc(0, "for the two that draw")

    def __post_init__(self) -> None:
        if not (self.train > 0 and self.val > 0 and self.train + self.val < 1):
            raise RecipeError(
                f"splits: train {self.train} and val {self.val} must be positive and sum below 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecipe:
    """Everything that decides what `build-dataset` makes."""

    kind: Literal["build"] = _doc("build", "what the recipe is for")
    name: str = _doc("custom", "shown in reports")
    description: str = _doc("", "one sentence")
    limits: Limits = field(default_factory=Limits)
    faces: Faces = field(default_factory=Faces)
    sources: Sources = field(default_factory=Sources)
    clips: Clips = field(default_factory=Clips)
    motion: Motion = field(default_factory=Motion)
    plan: Plan = field(default_factory=Plan)
    screen: Screen = field(default_factory=Screen)
    splits: Splits = field(default_factory=Splits)


R = TypeVar("R")


def load_recipe(name_or_path: str | Path, recipe_type: type[R]) -> R:
    """Read a recipe by the name of a shipped one or by path.

    Raises:
        RecipeError: not found, not TOML, of another kind, an unknown key or a bad value.
    """
    kind = _field_default(recipe_type, "kind")
    path = Path(name_or_path)
    shipped = resources.files("dfm_engine").joinpath("recipes", kind, f"{name_or_path}.toml")
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"reading the recipe {path}: {error.strerror}") from error
    elif shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        folder = resources.files("dfm_engine").joinpath("recipes", kind)
        names = sorted(p.name.removesuffix(".toml") for p in folder.iterdir())
        raise RecipeError(
            f"no {kind} recipe {name_or_path!r}: shipped are {', '.join(names)}; "
            "a file of your own ends in .toml"
        )
    return parse_recipe(text, recipe_type, origin=str(name_or_path))


def parse_recipe(text: str, recipe_type: type[R], *, origin: str = "recipe") -> R:
    """Parse TOML text into a recipe; see `load_recipe`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{origin}: not TOML: {error}") from error
    kind = _field_default(recipe_type, "kind")
    if table.get("kind", kind) != kind:
        raise RecipeError(f"{origin}: is a {table['kind']!r} recipe, a {kind!r} recipe is needed")
    return _build(recipe_type, table, origin)


def to_toml(recipe: Any) -> str:
    """The recipe as TOML, every field written out; parses back to an equal recipe."""
    lines: list[str] = []
    _write(dataclasses.asdict(recipe), [], lines)
    return "\n".join(lines).strip() + "\n"


def recipe_hash(recipe: Any) -> str:
    """16 hex digits that change with any field."""
    canonical = json.dumps(dataclasses.asdict(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def describe(recipe_type: type[Any], prefix: str = "") -> list[tuple[str, Any, str]]:
    """(dotted key, default, description) of every field, for docs and `--help`."""
    rows: list[tuple[str, Any, str]] = []
    hints = typing.get_type_hints(recipe_type)
    for item in dataclasses.fields(recipe_type):
        if dataclasses.is_dataclass(hints[item.name]):
            rows += describe(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")
        else:
            rows.append((prefix + item.name, _default(item), item.metadata.get("doc", "")))
    return rows


def _build(recipe_type: type[R], table: dict[str, Any], origin: str) -> R:
    hints = typing.get_type_hints(recipe_type)
    known = [item.name for item in dataclasses.fields(typing.cast(Any, recipe_type))]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise RecipeError(f"{origin}: unknown key {key!r}; {hint}")
        hint_type = hints[key]
        where = f"{origin}: {key}"
        if dataclasses.is_dataclass(hint_type):
            if not isinstance(value, dict):
                raise RecipeError(f"{where} must be a table, found {value!r}")
            values[key] = _build(typing.cast(type, hint_type), value, where)
        else:
            values[key] = _check(value, hint_type, where)
    return recipe_type(**values)


def _check(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise RecipeError(f"{where} must be one of {list(get_args(hint))}, found {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in get_args(hint):
            try:
                return _check(value, option, where)
            except RecipeError:
                continue
        raise RecipeError(f"{where} must be {hint}, found {value!r}")
    if origin is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"{where} must be a list, found {value!r}")
        return tuple(_check(item, get_args(hint)[0], where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where} must be a table, found {value!r}")
        return {
            key: _check(item, get_args(hint)[1], f"{where}.{key}") for key, item in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} must be {hint.__name__}, found {value!r}")
    return value


def _write(table: dict[str, Any], path: list[str], lines: list[str]) -> None:
    scalars = {k: v for k, v in table.items() if not isinstance(v, dict)}
    if path and (scalars or not table):
        lines += ["", f"[{'.'.join(map(_toml_key, path))}]"]
    lines += [
        f"{_toml_key(key)} = {_toml_value(value)}"
        for key, value in scalars.items()
        if value is not None
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            _write(value, [*path, key], lines)


def _toml_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else None


def _field_default(recipe_type: type[Any], name: str) -> str:
    return next(_default(f) for f in dataclasses.fields(recipe_type) if f.name == name)


def _positive(section: Any, *names: str) -> None:
    for name in names:
        if not getattr(section, name) > 0:
            raise RecipeError(
                f"{type(section).__name__.lower()}.{name} must be positive, "
                f"found {getattr(section, name)}"
            )


def _share(section: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(section, name) <= 1:
            raise RecipeError(
                f"{type(section).__name__.lower()}.{name} must be within 0..1, "
                f"found {getattr(section, name)}"
            )
