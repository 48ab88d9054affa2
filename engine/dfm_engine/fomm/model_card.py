"""The model card of trained weights: what they are, how they were made, what is wrong with them.

In: the run's record (run.json), its recipe, an evaluation. Out: Markdown. Every sentence with a
number is written from those files; what was seen by eye is passed in by who looked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfm_engine.fomm.config import DenseMotionConfig, FommConfig, KeypointConfig
from dfm_engine.fomm.train_recipe import TrainFommRecipe
from dfm_engine.recipe import parse_recipe


def card_of_run(run: Path, evaluation: Path, *, command: str, seen: Sequence[str] = ()) -> str:
    """The card of a run's folder and an evaluation's folder; see `model_card`."""
    recipe_file = run / "recipe.toml"
    return model_card(
        recipe=parse_recipe(
            recipe_file.read_text("utf-8"), TrainFommRecipe, origin=str(recipe_file)
        ),
        run=json.loads((run / "run.json").read_text("utf-8")),
        evaluation=json.loads((evaluation / "evaluate.json").read_text("utf-8")),
        table=(evaluation / "evaluate.md").read_text("utf-8"),
        command=command,
        seen=seen,
    )


def model_card(
    *,
    recipe: TrainFommRecipe,
    run: dict[str, Any],
    evaluation: dict[str, Any],
    table: str,
    command: str,
    seen: Sequence[str] = (),
) -> str:
    """Write the card.

    Args:
        recipe: as resolved in the run's folder.
        run: its run.json.
        evaluation: an `EvaluateResult.to_json()`.
        table: its `table()`.
        command: what was typed to train.
        seen: sentences about what looks wrong, from looking at the sheets.
    """
    machine, data = run["machine"], run["data"]
    where = machine.get("gpu") or f"{machine.get('cpu', 'a CPU')}, {machine['threads']} threads"
    size = run["weights_bytes"] / 1e6
    cost = multiply_adds(recipe.model)
    parameters = sum(run["parameters"].values())
    departures = list(departures_from_published(recipe))
    missed = [
        f"{name}: {goal['found']:.2f} instead of {goal['wanted']:.2f}"
        for name, goal in evaluation["goals"].items()
        if not goal["met"]
    ]
    lines = [
        f"# Model card: FOMM, recipe `{recipe.name}`",
        "",
        recipe.description,
        "",
        "A demonstration on procedural faces. It is no quality claim for real ones: no real person "
        "was seen in training, and none should be animated with it.",
        "",
        "## What it is",
        "",
        f"- A First Order Motion Model of {recipe.model.frame_size[0]} px with "
        f"{recipe.model.num_kp} keypoints; topology and key names are the published ones.",
        f"- {parameters:,} parameters, {size:.2f} MB (convolutions stored as float16).",
        f"- {cost['animate'] / 1e9:.2f} G multiply-adds per frame, {cost['keypoints'] / 1e9:.2f} G "
        f"per driving frame once, {cost['encode'] / 1e9:.2f} G per source once.",
        f"- Grid sampling with align_corners {recipe.align_corners}.",
        "",
        "## How it was made",
        "",
        f"- Data: {_data_sentence(data, recipe)}",
        f"- {run['step']:,} steps, {run['pairs']:,} pairs of frames, "
        f"{run['train_s'] / 60:.1f} minutes of training on {where} "
        f"(torch {machine['torch']}).",
        f"- Command: `{command}`",
        "",
        "Departures from the published training:",
        "",
        *[f"- {sentence}" for sentence in departures],
        "",
        "## Its numbers",
        "",
        _evaluation_sentence(evaluation),
        "",
        table.rstrip(),
        "",
        "Copy shows the source picture unmoved. Gain is the projection of the predicted change on "
        "the true one around eyes or mouth at the action's peak: 0 is no movement, 1 all of it.",
        "",
        "Goals missed: " + ("none." if not missed else "; ".join(missed) + "."),
    ]
    if seen:
        lines += ["", "## What looks wrong", "", *[f"- {sentence}" for sentence in seen]]
    return "\n".join(lines) + "\n"


def departures_from_published(recipe: TrainFommRecipe) -> list[str]:
    """What this recipe does that the published training does not, one sentence each."""
    losses, optimiser, model = recipe.losses, recipe.optimiser, recipe.model
    sentences: list[str] = []

    def say(applies: object, sentence: str) -> None:
        if applies:
            sentences.append(sentence)

    say(
        not losses.vgg_weights,
        "No VGG19: L1, gradient L1 and SSIM at four scales stand in for the perceptual loss.",
    )
    say(
        losses.points or losses.point_jacobians,
        f"Keypoints and jacobians are supervised with the renderer's landmarks (weights "
        f"{losses.points:g} and {losses.point_jacobians:g}, falling to "
        f"{losses.supervision_end:g} of that); the published ones find their own.",
    )
    say(
        not (losses.equivariance_value or losses.equivariance_jacobian),
        "No equivariance losses: the landmarks replace them.",
    )
    say(
        model.generator.num_down_blocks != 2,
        f"The generator has {model.generator.num_down_blocks} down blocks instead of 2.",
    )
    say(
        model.kp_detector.pad,
        "The keypoint heads are padded, so that heatmaps span the whole picture.",
    )
    say(
        recipe.data.cross_share,
        f"{100 * recipe.data.cross_share:.0f} % of the pairs are driven by another person, with "
        "keypoints carried over as in use and the rendered truth as target.",
    )
    say(
        losses.region_strength,
        f"Pixels around eyes and mouth weigh up to {1 + losses.region_strength:g} times as much.",
    )
    say(losses.warped, "The moved source itself is compared with the target, at quarter size.")
    say(losses.occlusion, "The occlusion map is supervised with the moved source's error.")
    say(optimiser.identity_start, "The generator starts by passing colours through.")
    say(optimiser.ema, f"What is shipped is an average of weights (decay {optimiser.ema:g}).")
    say(
        optimiser.recalibrate_batches,
        f"Batch-norm statistics are those of {optimiser.recalibrate_batches} batches at the end.",
    )
    say(
        recipe.schedule.decay == "cosine",
        f"Adam at {recipe.schedule.lr_generator:g}, falling as a cosine, instead of 2e-4 in steps.",
    )
    say(optimiser.grad_clip, f"Gradients are clipped at a norm of {optimiser.grad_clip:g}.")
    say(
        recipe.schedule.phase_px,
        "Frames grow during training: "
        + ", ".join(
            f"{px} px to {100 * until:.0f} %"
            for px, until in zip(recipe.schedule.phase_px, recipe.schedule.phase_until, strict=True)
        )
        + " of the time.",
    )
    say(optimiser.autocast == "bf16", "Generator and dense motion train in bfloat16.")
    say(optimiser.tf32, "The keypoint detector trains with TF32 products.")
    return sentences


def multiply_adds(config: FommConfig) -> dict[str, int]:
    """Multiply-adds of the convolutions: `keypoints`, `encode` (once per source), `animate`."""
    side = config.frame_size[0]
    keypoints, dense = config.kp_detector, config.generator.dense_motion_params
    generator = config.generator
    small = int(side * keypoints.scale_factor)
    heads = config.num_kp * (5 if config.estimate_jacobian else 1)
    valid = small - 6 + 2 * keypoints.pad
    kp = _hourglass(config.num_channels, keypoints, small)
    kp += 49 * (keypoints.block_expansion + config.num_channels) * heads * valid**2
    moved = (config.num_kp + 1) * (config.num_channels + 1)
    small = int(side * dense.scale_factor)
    animate = _hourglass(moved, dense, small)
    outputs = config.num_kp + 1 + int(generator.estimate_occlusion_map)
    animate += 49 * (dense.block_expansion + moved) * outputs * small**2
    widths = [
        min(generator.max_features, generator.block_expansion * 2**level)
        for level in range(generator.num_down_blocks + 1)
    ]
    encode = 49 * config.num_channels * widths[0] * side**2
    animate += 49 * config.num_channels * widths[0] * side**2
    for level, (before, after) in enumerate(itertools.pairwise(widths)):
        encode += 9 * before * after * (side >> level) ** 2
        animate += 9 * before * after * (side >> level) ** 2
    bottom = side >> generator.num_down_blocks
    animate += generator.num_bottleneck_blocks * 18 * widths[-1] ** 2 * bottom**2
    return {"keypoints": kp, "encode": encode, "animate": animate}


def _hourglass(channels_in: int, part: KeypointConfig | DenseMotionConfig, side: int) -> int:
    def width(level: int) -> int:
        return min(part.max_features, part.block_expansion * 2**level)

    total = 0
    for level in range(part.num_blocks):
        before = channels_in if level == 0 else width(level)
        total += 9 * before * width(level + 1) * (side >> level) ** 2
        below = width(level + 1) * (1 if level == part.num_blocks - 1 else 2)
        total += 9 * below * width(level) * (side >> level) ** 2
    return total


def _data_sentence(data: dict[str, Any], recipe: TrainFommRecipe) -> str:
    if data["source"] == "procedural":
        first, count = data["first_seed"], data["identities"]
        return (
            f"{count:,} rendered people (seeds {first} to {first + count - 1}, renderer version "
            f"{data['renderer_version']}), {data['frames_per_identity']} frames each, "
            f"{recipe.data.sharing} people sharing each set of states."
        )
    return f"{data['clips']:,} clips of {data['identities']:,} identities."


def _evaluation_sentence(evaluation: dict[str, Any]) -> str:
    data = evaluation["data"]
    if data["source"] == "procedural":
        first = data["first_seed"]
        return (
            f"{data['identities']} rendered people that training never saw (seeds {first} to "
            f"{first + data['identities'] - 1}), {data['moments']} moments of each action, neutral "
            "source. Self: driven by the same person; cross: by another, relative motion with "
            "adapted scale, compared with the first person drawn in the second's state."
        )
    return f"Clips of {data['folder']}, first frame driven by the later ones."
