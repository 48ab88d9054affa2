"""What each part of a build reaches alone: the ceilings that its stages are held against.

Everything is measured on the build's own material (its clips, framed by its framer, animated by its
model), in the process and with the threads that the build will have. A stage does several of these
things to a frame; `stage_ceilings` says which, and adds their times up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfm_bench.measure import Input, Row, Timing, clock_for, measure
from dfm_bench.roofline import count_flops, measure_matrix_product
from dfm_engine.animate import AnimationJob, animate_jobs, prepare_driving, prepare_source
from dfm_engine.clip import QUALITIES, Box, Pixels, Quality
from dfm_engine.errors import ShortfallError
from dfm_engine.faces.framing import SEARCH_SHARE, SMALLEST_SEARCH_PX
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.fomm.transfer import transfer
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_engine.machinery import Machinery
from dfm_engine.media.decode import read_frames
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.media.pool import EncodePool
from dfm_engine.options import BuildOptions, list_inputs
from dfm_engine.pixels import images_from_frames
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen.look import SMALLEST_FACE
from dfm_engine.torch_threads import one_thread
from dfm_kernels.crop import Cropper

__all__ = ["Machinery", "Material", "measure_ceilings", "stage_ceilings", "stage_core_seconds"]

STAGE_ALONE = "stage alone"
"""What rows of a whole stage are called; their variant is the stage."""

_Call = Callable[[Any], object]

CLIPS = 4  # real clips that the measurements rotate through
DETECT_FRAMES = 16  # frames per detector call
COMMENT = provenance_comment({"synthetic": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Clips of a build at every step of their way.

    Attributes:
        paths: real clips, equally long.
        ranges: the same, as a build reads them.
        pictures: decoded, uint8 (T, H, W, 3) each.
        boxes: of their faces.
        framed: cut to them, as long as the fake.
        fake: the first one animated, uint8 (T, S, S, 3).
        features, kp_source, kp_driving: what animated it; T rows of the last.
        driving: the framed driving clip.
    """

    paths: tuple[Path, ...]
    ranges: tuple[ClipRange, ...]
    pictures: tuple[Pixels, ...]
    boxes: tuple[Box, ...]
    framed: tuple[Pixels, ...]
    fake: Pixels
    features: SourceFeatures
    kp_source: Keypoints
    kp_driving: Keypoints
    driving: Pixels

    @classmethod
    def gather(cls, options: BuildOptions, machinery: Machinery) -> Material:
        """Take the first clips of a build all the way.

        Raises:
            ShortfallError: there is no real or no driving clip.
            MediaError: one of the first clips cannot be used.
        """
        inputs = list_inputs(options)
        real, driving = inputs.sources.clips[:CLIPS], inputs.driving.clips[:1]
        if not real or not driving:
            raise ShortfallError("a benchmark needs at least one real and one driving clip")
        runner, recipe = machinery.runner, options.recipe
        framed = [machinery.framer(clip) for clip in real]
        driven = machinery.framer(driving[0]).frames
        features, kp_source = prepare_source(
            framed[0].frames[framed[0].source_index], runner=runner
        )
        keypoints = prepare_driving(driven, runner=runner, batch_size=machinery.batch_size)
        kp_driving = transfer(kp_source, keypoints, keypoints[0], mode=recipe.motion.mode)
        job = AnimationJob(key="", source=features, kp_source=kp_source, kp_driving=kp_driving)
        ((_, fake, _),) = animate_jobs([job], runner=runner, batch_size=machinery.batch_size)
        return cls(
            paths=tuple(clip.path for clip in real),
            ranges=tuple(ClipRange.of(clip) for clip in real),
            pictures=tuple(np.stack(list(read_frames(clip.path))) for clip in real),
            boxes=tuple(clip.box for clip in framed),
            framed=tuple(clip.frames[: len(fake)] for clip in framed),
            fake=fake,
            features=features,
            kp_source=kp_source,
            kp_driving=kp_driving,
            driving=driven,
        )


def measure_ceilings(
    material: Material,
    machinery: Machinery,
    recipe: BuildRecipe,
    *,
    repeats: int,
    scratch: Path,
    command: str = "",
) -> tuple[Row, ...]:
    """Measure every part alone.

    Args:
        material: what to measure on.
        machinery: what to measure with.
        recipe: of the build.
        repeats: calls of each that count.
        scratch: a folder for encoded files.
        command: for the rows.
    """

    def timed(
        call: Callable[[Input], object], inputs: Sequence[Input], device: str = "cpu"
    ) -> Timing:
        return measure({"": call}, inputs, repeats=repeats, clock=clock_for(device))[""]

    return (
        *_media_rows(material, timed, command),
        *_reader_rows(material, machinery, recipe, timed, command),
        *_detector_rows(material, machinery, recipe, timed, command),
        *_model_rows(material, machinery, timed, repeats, command),
        *_encoder_rows(material, machinery, recipe, repeats, scratch, command),
    )


def stage_ceilings(rows: Sequence[Row], recipe: BuildRecipe) -> dict[str, float]:
    """Frames per busy second that each stage of a build could reach.

    What a stage does besides (landmarks and patches in the screen, the choice of a source frame)
    is not in its ceiling: it is what the ceiling is there to show.
    """
    cost = {(row.name, row.variant): 1 / row.rate for row in rows}
    return {name: 1 / seconds for name, seconds in _per_frame(cost, recipe).items()}


def stage_core_seconds(rows: Sequence[Row], recipe: BuildRecipe) -> dict[str, float]:
    """Core-seconds per frame of each stage of a build, measured alone; on a CPU.

    Args:
        rows: of the parts, and of stages as a whole (`stages_alone`), which go before their parts.
        recipe: of the build.
    """
    cost = {(row.name, row.variant): row.core_s for row in rows if row.core_s is not None}
    whole = {variant: seconds for (name, variant), seconds in cost.items() if name == STAGE_ALONE}
    return _per_frame(cost, recipe) | whole


def _per_frame(cost: Mapping[tuple[str, str], float], recipe: BuildRecipe) -> dict[str, float]:
    """The cost of a frame in each stage from that of the parts, by name and variant."""
    # What reads by other means than PyAV is measured as a whole.
    read = cost.get(("read", ""), cost["decode", ""] + cost["crop", ""])
    return {
        # Two passes over the file; the face is looked for on every n-th frame of the first.
        "frame": cost["look", ""] + read + cost["detect", "search"] / recipe.faces.every_n,
        "decode": read,
        "driving decode": read,
        "driving keypoints": cost["keypoints", ""],
        "driving screen": cost["detect", "framed"] / recipe.screen.every_n,
        "animate": cost["generator", ""],
        "screen": cost["detect", "framed"] / recipe.screen.every_n,
        "encode": sum(cost["x264", quality] for quality in QUALITIES),
    }


Timed = Callable[..., Timing]


def _media_rows(material: Material, timed: Timed, command: str) -> Iterator[Row]:
    shape = material.pictures[0].shape
    yield Row.of(
        "decode",
        timed(lambda path: sum(1 for _ in read_frames(path)), material.paths),
        amount=shape[0],
        unit="frames/s",
        shape=shape,
        command=command,
    )
    size = material.fake.shape[1]

    def crop(clip: tuple[Pixels, Box]) -> None:
        pictures, box = clip
        cropper = Cropper(pictures.shape[1], pictures.shape[2], box, size)
        with one_thread():  # as framing does
            for picture in torch.from_numpy(pictures):
                cropper(picture)

    yield Row.of(
        "crop",
        timed(crop, list(zip(material.pictures, material.boxes, strict=True))),
        amount=shape[0],
        unit="frames/s",
        shape=shape,
        command=command,
    )


def _reader_rows(
    material: Material, machinery: Machinery, recipe: BuildRecipe, timed: Timed, command: str
) -> Iterator[Row]:
    """The two passes of a build's reader over a clip: to look for the face, and to cut it out."""
    reader, shape = machinery.reader, material.pictures[0].shape
    limits, clips, size = recipe.limits, recipe.clips, material.fake.shape[1]

    def look(given: tuple[ClipRange, Box]) -> int:
        every_n = recipe.faces.every_n
        return sum(1 for _ in reader.look(given[0], every_n=every_n, limits=limits, clips=clips))

    def read(given: tuple[ClipRange, Box]) -> Pixels:
        clip, box = given
        return reader.crop(clip, box, size=size, limits=limits, clips=clips, first_frame=0)

    passes: dict[str, Callable[[tuple[ClipRange, Box]], object]] = {"look": look}
    if not isinstance(reader, PyavReader):  # whose parts are measured above
        passes["read"] = read
    for name, call in passes.items():
        yield Row.of(
            name,
            timed(call, list(zip(material.ranges, material.boxes, strict=True))),
            amount=min(shape[0], clips.max_frames),
            unit="frames/s",
            shape=shape,
            command=command,
        )


def _detector_rows(
    material: Material, machinery: Machinery, recipe: BuildRecipe, timed: Timed, command: str
) -> Iterator[Row]:
    """As framing looks for a face in a picture, and as the screen does in an animation."""
    search = max(SMALLEST_SEARCH_PX, SEARCH_SHARE * recipe.faces.min_face_px)
    framed = max(SMALLEST_SEARCH_PX, SMALLEST_FACE * material.fake.shape[1])
    looks = {
        "search": (search, [pictures[:DETECT_FRAMES] for pictures in material.pictures]),
        "framed": (framed, [material.fake[:DETECT_FRAMES]]),
    }
    for variant, (smallest, batches) in looks.items():
        yield Row.of(
            "detect",
            timed(lambda b, s=smallest: machinery.detector.detect(b, min_face_px=s), batches),
            variant=variant,
            amount=len(batches[0]),
            unit="frames/s",
            shape=batches[0].shape,
            device=machinery.runner.device.type,
            command=command,
        )


def _model_rows(
    material: Material, machinery: Machinery, timed: Timed, repeats: int, command: str
) -> Iterator[Row]:
    """Keypoints and generator at the build's batch size, against a matrix product."""
    runner, rows = machinery.runner, machinery.batch_size
    device = runner.device.type
    launched = getattr(runner, "unrecorded", runner.animate)  # a replay shows no operations
    dtypes = {"keypoints": torch.float32}
    dtypes["generator"] = torch.float32 if launched == runner.animate else torch.float16
    products = {
        dtype: measure_matrix_product(runner.device, repeats=repeats, dtype=dtype, command=command)
        for dtype in dict.fromkeys(dtypes.values())
    }
    yield from products.values()
    picks = [np.arange(start, start + rows) % len(material.fake) for start in (0, rows)]
    images = [images_from_frames(material.driving[p], device=runner.device) for p in picks]
    kp_driving = [material.kp_driving[torch.from_numpy(p).to(runner.device)] for p in picks]

    def animate(keypoints: Keypoints) -> object:
        return runner.animate(material.features, material.kp_source, keypoints)

    def launch(keypoints: Keypoints) -> object:
        return launched(material.features, material.kp_source, keypoints)

    models: dict[str, tuple[_Call, _Call, Sequence[Any]]] = {
        "keypoints": (runner.keypoints, runner.keypoints, images),
        "generator": (animate, launch, kp_driving),
    }
    for name, (call, counted, inputs) in models.items():
        # Of one row: only the calling thread's are counted. What is not torch's counts none.
        flops = count_flops(functools.partial(counted, inputs[0][:1])) * rows
        product = products[dtypes[name]]
        yield Row.of(
            name,
            timed(call, inputs, device),
            amount=rows,
            unit="frames/s",
            shape=(rows, 3, *runner.frame_size),
            dtype=product.dtype,
            device=device,
            ceiling=product.rate * 1e9 * rows / flops if flops else None,
            ceiling_of=f"{product.dtype} matrix product" if flops else "",
            command=command,
        )


def _encoder_rows(
    material: Material,
    machinery: Machinery,
    recipe: BuildRecipe,
    repeats: int,
    scratch: Path,
    command: str,
) -> Iterator[Row]:
    """One real and one fake clip a call, as a build encodes them in pairs."""
    fps = recipe.clips.fps
    pairs = [(real, material.fake) for real in material.framed]
    amount = sum(map(len, pairs[0]))
    shape = material.fake.shape
    i420 = [[rgb_to_i420(clip) for clip in pair] for pair in pairs]

    workers = machinery.workers

    def alone(quality: Quality) -> Callable[[int], None]:
        def call(number: int) -> None:
            for clip in i420[number % len(i420)]:
                path = scratch / f"{quality}.mp4"
                encode_clip(clip, path, quality=quality, fps=fps, comment=COMMENT)

        return call

    def pooled(pool: EncodePool, given: Sequence[Sequence[Pixels]]) -> Callable[[int], None]:
        def call(number: int) -> None:
            outputs: list[Mapping[Quality, Path]] = [
                {quality: scratch / f"{place}.{quality}.mp4" for quality in QUALITIES}
                for place in range(2 * workers)
            ]
            futures = [
                pool.submit(
                    given[number % len(given)][place % 2], outputs=paths, comment=COMMENT, fps=fps
                )
                for place, paths in enumerate(outputs)
            ]
            for future in futures:
                future.result()

        return call

    # Round by round, for the share of the ceiling is what they are measured for.
    with EncodePool(workers, queue_clips=2) as pool:
        calls: dict[str, Callable[[int], None]] = {quality: alone(quality) for quality in QUALITIES}
        # Clips come from a GPU as I420; what the host has as RGB, the workers convert.
        calls |= {"I420": pooled(pool, i420), "RGB": pooled(pool, pairs)}
        # More inputs than calls, so that no call finds its own in the cache.
        timings = measure(calls, range(len(calls) * (len(pairs) + 1)), repeats=repeats)
    for quality in QUALITIES:
        yield Row.of(
            "x264",
            timings[quality],
            variant=quality,
            amount=amount,
            unit="frames/s",
            shape=shape,
            command=command,
        )
    one_core = 1 / sum(timings[quality].median_s for quality in QUALITIES)
    for given in ("I420", "RGB"):
        yield Row.of(
            "encode pool",
            timings[given],
            variant=f"{given}, {workers} worker" + "s" * (workers > 1),
            amount=amount * workers,
            unit="frames/s",
            shape=shape,
            ceiling=amount * one_core * workers,
            ceiling_of="x264 alone, all qualities",
            command=command,
        )
