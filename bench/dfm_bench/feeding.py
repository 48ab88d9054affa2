"""How fast frames of a store reach a training: gather, fused step, and a training's own rate.

    check that modes agree ─► gather, each mode ─► fused step ─► training, each mode and constant

The goal is a training that never waits: at least `GOAL` of its rate on one and the same batch. What
a call of the training measures is several steps and the batch fetched ahead of the next, so that no
mode leaves work to the variant that is timed after it. Nothing is reported of modes that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfm_bench.measure import Row, measure
from dfm_engine.detect.models import create_detector
from dfm_engine.errors import CheckFailed
from dfm_engine.store.augment import AugmentPolicy, FusedAugment, draw
from dfm_engine.store.batches import Batches, SampleTable
from dfm_engine.store.frames import Store
from dfm_engine.store.loader import Loader, Mode, open_loader

__all__ = ["GOAL", "FeedWorkload", "check_modes", "feed_rows", "modes_of", "remarks_on"]

_CONSTANT = "one constant batch"

GOAL = 0.95
"""Of the rate on a constant batch, that a training keeps."""

HALF = (0.5, 0.5, 0.5)
POLICIES = {
    "nothing drawn": AugmentPolicy(),
    "mirrored": AugmentPolicy(horizontal_flip=0.5),
    "mirrored, turned, zoomed, coloured": AugmentPolicy(
        horizontal_flip=0.5, scale=(0.95, 1.1), rotate_deg=10.0,
        brightness=0.1, contrast=0.1, saturation=0.1,
    ),
}  # fmt: skip
TRAINED = "mirrored"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedWorkload:
    """What is fed, to what.

    Attributes:
        batch_size: samples per step.
        model: of `detect.DETECTORS`; small, so that a loader has little time.
        steps: of training in a call.
        repeats: calls that count.
        gathers: batches that are gathered in turn.
    """

    batch_size: int = 32
    model: str = "small-cnn"
    steps: int = 6
    repeats: int = 9
    gathers: int = 24


def modes_of(device: torch.device) -> tuple[Mode, ...]:
    """The modes that train on a device; on a CPU `device` is `host` by another name."""
    return ("device", "host", "memmap") if device.type == "cuda" else ("host", "memmap")


def feed_rows(
    store: Store,
    data: Path,
    *,
    device: torch.device,
    workload: FeedWorkload | None = None,
    command: str = "",
) -> tuple[Row, ...]:
    """Measure.

    Args:
        store: with both labels.
        data: the folder that its clips are in.
        device: where the training is.
        workload: what is fed.
        command: makes the rows again.

    Raises:
        CheckFailed: two modes give different batches.
    """
    workload = workload or FeedWorkload()
    loaders = {
        mode: open_loader(store, mode, device=device, data=data)
        for mode in (*modes_of(device), "stream")
    }
    try:
        check_modes(loaders, workload)
        copy, *copies = _copy_rows(store, workload, command)
        return (
            *(copy, *copies),
            *_gather_rows(loaders, workload, copy, command),
            *_augment_rows(loaders, workload, copy, device, command),
            *_training_rows(loaders, workload, device, command),
        )
    finally:
        for loader in loaders.values():
            loader.close()


def check_modes(loaders: dict[str, Loader], workload: FeedWorkload) -> None:
    """See that every mode gives the same batches, to the bit.

    Raises:
        CheckFailed: they differ.
    """
    first, *others = loaders
    policy = POLICIES[TRAINED]
    feeds = {mode: _batches(loader, workload, policy) for mode, loader in loaders.items()}
    last = feeds[first].steps_per_epoch - 1
    steps = [(0, last), (1, 0)]
    wanted = [feeds[first].batch(*step) for step in steps]
    for mode in others:
        for step, batch in zip(steps, wanted, strict=True):
            found = feeds[mode].batch(*step)
            if not (
                np.array_equal(found.rows, batch.rows)
                and torch.equal(found.images, batch.images)
                and torch.equal(found.labels, batch.labels)
            ):
                raise CheckFailed(
                    f"no numbers: the loader {mode} gives another batch than {first} in epoch "
                    f"{step[0]}, step {step[1]}; run tests/engine/store/test_batches.py"
                )
    for feed in feeds.values():
        feed.close()


def _copy_rows(store: Store, workload: FeedWorkload, command: str) -> Iterator[Row]:
    """What one core copies from one place in main memory to another."""
    shape = (workload.batch_size, *store.meta.frame_shape)
    blocks = [np.full(shape, number, np.uint8) for number in range(8)]  # not all in a cache
    into = np.empty(shape, np.uint8)
    timing = measure(
        {"": lambda block: np.copyto(into, block)}, blocks, repeats=5 * workload.repeats
    )[""]
    for unit, amount in _amounts(shape).items():
        yield Row.of("memory copy", timing, amount=amount, unit=unit, shape=shape, command=command)


def _amounts(shape: tuple[int, ...]) -> dict[str, float]:
    """Work in a batch of stored frames, in two units."""
    return {"frames/s": shape[0], "GB/s": np.prod(shape) / 1e9}


def _gather_rows(
    loaders: dict[str, Loader], workload: FeedWorkload, copy: Row, command: str
) -> Iterator[Row]:
    """Random rows to the device; from `stream` rows in their order, as in scoring."""
    resident = {mode: loader for mode, loader in loaders.items() if mode != "stream"}
    store, stream = loaders["stream"].store, loaders["stream"]
    rng = np.random.default_rng(0)
    random = [rng.integers(0, store.rows, workload.batch_size) for _ in range(workload.gathers)]
    walk = np.arange((workload.gathers + 2) * workload.batch_size) % store.rows
    in_order = np.split(walk, workload.gathers + 2)
    stream.follow(in_order)
    coming = iter(in_order)
    timings = measure(
        {
            mode: lambda pick, loader=loader: _finished(loader.gather(pick))
            for mode, loader in resident.items()
        },
        random,
        repeats=len(random),
        warm_up=2,
    ) | measure(
        {"stream": lambda _: _finished(stream.gather(next(coming)))},
        [None],
        repeats=workload.gathers,
        warm_up=2,
    )
    shape = (workload.batch_size, *store.meta.frame_shape)
    for mode, timing in timings.items():
        for unit, amount in _amounts(shape).items():
            yield Row.of(
                "gather" if mode != "stream" else "decode again, in order",
                timing,
                variant=mode,
                amount=amount,
                unit=unit,
                shape=shape,
                device=loaders[mode].device.type,
                ceiling=copy.rate * amount / workload.batch_size,
                ceiling_of="memory copy",
                command=command,
            )


def _augment_rows(
    loaders: dict[str, Loader],
    workload: FeedWorkload,
    copy: Row,
    device: torch.device,
    command: str,
) -> Iterator[Row]:
    """The fused step, against moving its input and its output once."""
    loader = next(iter(loaders.values()))
    store, count = loader.store, workload.batch_size
    augment = _augment(loader)
    names = np.arange(count)
    inputs = [loader.gather((names + 7 * turn) % store.rows) for turn in range(6)]

    def run(raw: Tensor, policy: AugmentPolicy) -> None:
        _finished(augment(raw, draw(policy, seed=0, epoch=0, samples=names)))

    timings = measure(
        {name: lambda raw, policy=policy: run(raw, policy) for name, policy in POLICIES.items()},
        inputs,
        repeats=workload.repeats,
        warm_up=2,
    )
    in_and_out = store.meta.frame_bytes + 3 * augment.size_px**2 * augment.dtype.itemsize
    for name, timing in timings.items():
        yield Row.of(
            "fused step",
            timing,
            variant=name,
            amount=count,
            unit="frames/s",
            shape=tuple(inputs[0].shape),
            device=device.type,
            ceiling=None
            if device.type == "cuda"  # the copy was measured in the host's memory
            else copy.rate * 2 * store.meta.frame_bytes / in_and_out,
            ceiling_of="" if device.type == "cuda" else "memory copy, in and out",
            command=command,
        )


def _training_rows(
    loaders: dict[str, Loader], workload: FeedWorkload, device: torch.device, command: str
) -> Iterator[Row]:
    """The same step on what a mode fetches and on one batch again and again, turn by turn."""
    modes = [mode for mode in loaders if mode != "stream"]
    feeds = {
        mode: _batches(loaders[mode], workload, POLICIES[TRAINED], balanced=True) for mode in modes
    }
    step = _training_step(workload.model, loaders[modes[0]].store.meta.size_px, device)
    same = feeds[modes[0]].batch(0, 0)

    def constant(_: int) -> None:
        for _ in range(workload.steps):
            step(same.images, same.labels)
        _finished(same.images)

    def fed(turn: int, feed: Batches) -> None:
        for at in range(turn * workload.steps, (turn + 1) * workload.steps):
            batch = feed.batch(*divmod(at, feed.steps_per_epoch))
            step(batch.images, batch.labels)
        feed.wait()
        _finished(same.images)

    variants: dict[str, Callable[[int], None]] = {"constant": constant}
    variants |= {mode: lambda turn, feed=feed: fed(turn, feed) for mode, feed in feeds.items()}
    timings = measure(variants, range(workload.repeats + 1), repeats=workload.repeats)
    for feed in feeds.values():
        feed.close()
    amount = workload.steps * workload.batch_size
    best = amount / timings["constant"].median_s
    for mode, timing in timings.items():
        yield Row.of(
            f"train {workload.model}",
            timing,
            variant=_CONSTANT if mode == "constant" else mode,
            amount=amount,
            unit="frames/s",
            shape=(workload.batch_size, 3, *same.images.shape[2:]),
            dtype=str(same.images.dtype).removeprefix("torch."),
            device=device.type,
            ceiling=None if mode == "constant" else best,
            ceiling_of="" if mode == "constant" else _CONSTANT,
            command=command,
        )


def _training_step(
    name: str, size_px: int, device: torch.device
) -> Callable[[Tensor, Tensor], None]:
    net = create_detector(name, input_px=size_px)
    net = net.to(device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = net(images)
        loss = F.binary_cross_entropy_with_logits(logits[:, -1].float(), labels.float())
        loss.backward()
        optimiser.step()

    return step


def _augment(loader: Loader) -> FusedAugment:
    meta = loader.store.meta
    return FusedAugment(meta, size_px=meta.size_px, mean=HALF, std=HALF, device=loader.device)


def _batches(
    loader: Loader, workload: FeedWorkload, policy: AugmentPolicy, *, balanced: bool = False
) -> Batches:
    return Batches(
        SampleTable.of(loader.store.index),
        loader,
        _augment(loader),
        batch_size=workload.batch_size,
        policy=policy,
        balanced=balanced,
    )


def _finished(work: Tensor) -> None:
    """Until the device has done what was asked of it: the host's clock is what counts here."""
    if work.device.type == "cuda":
        torch.cuda.synchronize(work.device)


def remarks_on(rows: Sequence[Row], *, load_per_core: float) -> tuple[str, ...]:
    """What a reader has to know about the trainings among the rows.

    Args:
        rows: of `feed_rows`.
        load_per_core: processes that wanted each core when the measurement began.
    """
    trainings = {row.variant: row for row in rows if row.name.startswith("train ")}
    constant = trainings.pop(_CONSTANT, None)
    remarks: list[str] = []
    for mode, row in trainings.items():
        if row.share is None or row.share >= GOAL:
            continue
        work = ""
        if constant is not None and row.core_s and constant.core_s:
            work = f" It takes {row.core_s / constant.core_s - 1:.1%} more processor time."
        remarks.append(
            f"A training from {mode} keeps {row.share:.1%} of its rate on one constant batch; the "
            f"goal is {GOAL:.0%}.{work}"
        )
    if remarks and load_per_core > 0.5:
        remarks.append(
            f"Other processes wanted the cores ({load_per_core:.1f} each): the thread that fetches "
            "ahead had none for itself. Measure again on a quiet machine."
        )
    return tuple(remarks)
