"""Each stage of a build as a whole, alone: what a clip costs of one core with nothing beside it.

`ceilings` measures the parts that a stage cannot do without; here it is the stage's own function,
with all that it does besides (curves of motion, the choice of a frame, the way to I420). Their sum
is what a build has to find room for on its cores. Stages that `ceilings` covers whole (the
generator, keypoints, decoding with its crop) are not measured twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfm_bench.ceilings import COMMENT, STAGE_ALONE, Material
from dfm_bench.measure import Row, measure
from dfm_engine.animate import prepare_source
from dfm_engine.clip import QUALITIES
from dfm_engine.errors import ShortfallError
from dfm_engine.machinery import Machinery
from dfm_engine.media.encode import encode_clip, rgb_to_i420
from dfm_engine.media.probe import probe
from dfm_engine.options import BuildOptions, list_inputs
from dfm_engine.screen import extract_signals, look, screen_animation
from dfm_engine.screen import measure as measure_signals
from dfm_engine.torch_threads import one_thread

__all__ = ["measure_stages_alone"]


def measure_stages_alone(
    options: BuildOptions,
    material: Material,
    machinery: Machinery,
    *,
    repeats: int,
    scratch: Path,
    command: str = "",
) -> tuple[Row, ...]:
    """Time the stages on a build's own clips, each in one thread.

    Args:
        options: of the build.
        material: its first clips at every step of their way.
        machinery: what it is built with; on a CPU.
        repeats: calls of each that count.
        scratch: a folder for encoded files.
        command: for the rows.

    Raises:
        ShortfallError: no face is found in the framed driving clip.
    """
    recipe, detector = options.recipe, machinery.detector
    inputs = list_inputs(options)
    real, action = inputs.sources.clips, inputs.driving.clips[0].action
    every_n = recipe.screen.every_n
    track = look(material.driving, detector, every_n=every_n)
    if track is None:
        raise ShortfallError("no face in the framed driving clip: nothing to measure a screen on")
    signals = extract_signals(material.driving, track)

    def screen_driving(_: Any) -> None:
        found = look(material.driving, detector, every_n=every_n)
        assert found is not None
        extract_signals(material.driving, found)

    def encode(clip: Any) -> None:
        i420 = rgb_to_i420(clip)
        for quality in QUALITIES:
            path = scratch / f"alone.{quality}.mp4"
            encode_clip(i420, path, quality=quality, fps=recipe.clips.fps, comment=COMMENT)

    first = [clip[:1] for clip in material.framed]
    clip_frames, file_frames = len(material.fake), len(material.pictures[0])
    framed = [real[place] for place in range(len(material.framed))]
    framed_frames = len(machinery.framer(framed[0]).frames)
    stages: dict[str, tuple[Callable[[Any], object], Sequence[Any], int]] = {
        "probe": (lambda path: probe(path, limits=recipe.limits), material.paths, file_frames),
        "frame": (machinery.framer, framed, framed_frames),
        "driving screen": (screen_driving, [None], clip_frames),
        "source features": (
            lambda frame: prepare_source(frame[0], runner=machinery.runner),
            first,
            1,
        ),
        "source screen": (lambda frame: measure_signals(frame, detector, every_n=1), first, 1),
        "screen": (
            lambda frames: screen_animation(
                signals, frames, action, detector=detector, settings=recipe.screen
            ),
            [material.fake],
            clip_frames,
        ),
        "encode": (encode, [material.fake, *material.framed], clip_frames),
    }
    with one_thread():  # as in a build
        timings = {
            name: measure({"": call}, given, repeats=repeats)[""]
            for name, (call, given, _) in stages.items()
        }
    return tuple(
        Row.of(
            STAGE_ALONE,
            timings[name],
            variant=name,
            amount=frames,
            unit="frames/s",
            shape=(frames, *machinery.runner.frame_size, 3),
            command=command,
        )
        for name, (_, _, frames) in stages.items()
    )
