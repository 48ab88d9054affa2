"""The model card of a trained detector: what it is, how it was made, what it must not be used for.

Every sentence with a number is written from the run's own record.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dfm_engine.detect.train_recipe import TrainDetectorRecipe
from dfm_engine.store.draws import AugmentPolicy


def model_card(
    facts: dict[str, Any], *, recipe: TrainDetectorRecipe, machine: dict[str, str]
) -> str:
    """Write the card, in Markdown.

    Args:
        facts: the run's detector.json.
        recipe: as resolved.
        machine: `train_device.machine` of the training.
    """
    spec, best = facts["spec"], facts["best"]
    logits = "one logit (fake)" if spec["head"] == "sigmoid" else "two logits (real, fake)"
    where = machine.get("gpu") or f"{machine.get('cpu', 'a CPU')}, {machine['threads']} threads"
    lines = [
        f"# Model card: forgery detector {facts['model']}, recipe `{recipe.name}`",
        "",
        recipe.description,
        "",
        *_warnings(recipe),
        "## What it is",
        "",
        f"- {facts['model']}, {facts['parameters']:,} parameters, {logits}; input "
        f"{spec['input_px']} px, mean {_numbers(spec['mean'])}, std {_numbers(spec['std'])}"
        + (f", the middle window of {spec['crop']:.0%}" if spec["crop"] < 1 else "")
        + ".",
        f"- Class activation maps: {_MAPS[spec['cam']]}",
        f"- SHA-256 `{facts['weights_sha256']}`.",
        "",
        "## How it was made",
        "",
        *_data_lines(facts["store"], recipe),
        *_training_lines(facts, recipe),
        f"- On {where} (torch {machine['torch']}).",
        "",
        "## Its numbers",
        "",
        f"Frames of the validation split, threshold 0.5, after epoch {facts['best_epoch']}, the "
        "best one; chosen on these very frames, so they flatter. For a claim about unseen people "
        "run `dfm-engine evaluate detector` on the test split.",
        "",
        "| quality | accuracy |",
        "| --- | --- |",
        *[
            f"| {name.split('/')[1]} | {value:.4f} |"
            for name, value in best.items()
            if name.count("/") == 2
        ],
        f"| mean | {best['val/accuracy']:.4f} |",
        "",
        f"Balanced accuracy {best['val/balanced_accuracy']:.4f}, loss {best['val/loss']:.4f}; on "
        f"training frames accuracy {best['train/accuracy']:.4f}.",
        "",
        "## Use, and limits",
        "",
        "- Made to study the detection of facial-animation fakes like those of its training set, "
        "with faces cut out as there and 8-bit H.264 at the same qualities.",
        "- It has seen one generator. Of fakes by others, of other codecs, crops and cameras its "
        "score says little; below chance is possible.",
        "- A score is no proof. Do not use it to accuse anybody, nor as the only gate of a "
        "liveness check. Say how often it errs, per group of people where groups are known.",
        "- It reads whatever separates the two classes of its training set. `report.html` of the "
        "data set says what separates them without a face.",
    ]
    return "\n".join(lines) + "\n"


_MAPS = {
    "exact": "exact (global average pooling and a linear layer).",
    "contribution": "contributions of the last feature map, exact up to the biases.",
    "gradient": "gradient times activation, an approximation: the net has no linear head.",
}


def _warnings(recipe: TrainDetectorRecipe) -> list[str]:
    if recipe.data.labels != "shuffled":
        return []
    return [
        "**A control, not a detector.** Its labels were shuffled: it cannot have learned anything "
        "true, and a measurement that finds otherwise is wrong.",
        "",
    ]


def _data_lines(store: dict[str, Any], recipe: TrainDetectorRecipe) -> list[str]:
    lines: list[str] = []
    for split, counts in store["splits"].items():
        lines.append(
            f"- {split}: {counts['real_clips']} real and {counts['fake_clips']} fake clips of "
            f"{counts['identities']} identities, {counts['frames']} frames per quality."
        )
    quality = recipe.data.quality
    shared = store["shared_identities"]
    if shared:
        lines.append(
            "- **People of train are in other splits too**: "
            + ", ".join(f"{count} in {split}" for split, count in shared.items())
            + ". Numbers on those splits say little about people whom the net has not seen."
        )
    how = "drawn per sample and epoch from" if quality == "mixed" else "always"
    lines += [
        f"- Quality: {how} {', '.join(store['qualities'])}. Per epoch "
        f"{'one random frame' if recipe.data.frames == 'one' else 'every stored frame'} of each "
        "clip.",
        f"- Frames of {store['size_px']} px ({store['layout']}); store `{store['sha256'][:16]}`.",
    ]
    return lines


def _training_lines(facts: dict[str, Any], recipe: TrainDetectorRecipe) -> list[str]:
    schedule, optimiser = recipe.schedule, recipe.optimiser
    fall = f"falling to 0 with power {schedule.power:g}" if schedule.decay == "poly" else "constant"
    one = facts["spec"]["head"] == "sigmoid"
    is_mse = optimiser.loss == "mse" or (optimiser.loss == "auto" and one)
    lines = [
        f"- {schedule.epochs} epochs, {facts['steps']:,} steps of {schedule.batch_size} samples; "
        f"Adam {schedule.lr:g} {fall}, betas {_numbers(optimiser.betas)}, weight decay "
        f"{optimiser.weight_decay:g}; loss: "
        f"{'mean squared error of the probability' if is_mse else 'cross-entropy'}"
        f"{', both classes weighed alike' if recipe.data.balance == 'loss' else ''}.",
        f"- First weights `{facts['start_weights_sha256'][:16]}`, seed {schedule.seed}.",
    ]
    if facts["is_frozen"]:
        lines.append(
            "- The backbone was frozen, its batch norms in evaluation mode; no changes to "
            "the frames."
        )
    plain = asdict(AugmentPolicy())
    policy = {key: v for key, v in asdict(recipe.augment).items() if v != plain[key]}
    shown = [f"{key.replace('_', ' ')} {_shown(value)}" for key, value in policy.items()]
    lines.append(f"- Augmentation: {', '.join(shown) or 'none'}.")
    return lines


def _shown(value: Any) -> str:
    return _numbers(value) if isinstance(value, list | tuple) else f"{value:g}"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
