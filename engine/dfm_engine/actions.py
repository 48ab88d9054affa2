"""The ten driving actions of DeepFake MNIST+, in the paper's order.

The paper prints nine comma-separated items; "look up and smile" is two actions. The folder names
of the authors' archive (one misspelt) and common variants are aliases.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Action(StrEnum):
    """One facial action; the value is the folder name and the manifest's word."""

    BLINK = "blink"
    OPEN_MOUTH = "open_mouth"
    YAW = "yaw"
    NOD = "nod"
    RIGHT_SLOPE = "right_slope"  # the head tilts towards the subject's own right shoulder
    LEFT_SLOPE = "left_slope"
    LOOK_UP = "look_up"
    SMILE = "smile"
    SURPRISE = "surprise"
    EMBARRASSMENT = "embarrassment"


ALIASES: dict[str, Action] = {
    **{action.value: action for action in Action},
    "mouth": Action.OPEN_MOUTH,
    "openmouth": Action.OPEN_MOUTH,
    "up": Action.LOOK_UP,
    "lookup": Action.LOOK_UP,
    "right": Action.RIGHT_SLOPE,
    "rightslope": Action.RIGHT_SLOPE,
    "left": Action.LEFT_SLOPE,
    "leftslope": Action.LEFT_SLOPE,
    "surpise": Action.SURPRISE,  # spelt so in the authors' archive
    "suprise": Action.SURPRISE,
    "surprised": Action.SURPRISE,
    "embarrass": Action.EMBARRASSMENT,
    "embarras": Action.EMBARRASSMENT,
    "embarrassed": Action.EMBARRASSMENT,
}


def parse_action(name: str) -> Action | None:
    """The action that a folder or column names, or None if it names none.

    Case, spaces, hyphens and underscores do not matter: `Right Slope` is `right_slope`.
    """
    word = re.sub(r"[\s_-]+", "_", name.strip().lower())
    return ALIASES.get(word) or ALIASES.get(word.replace("_", ""))


def mirrored(action: Action) -> Action:
    """The action seen in a mirror: the two slopes change places, the others stay."""
    swap = {Action.RIGHT_SLOPE: Action.LEFT_SLOPE, Action.LEFT_SLOPE: Action.RIGHT_SLOPE}
    return swap.get(action, action)
