"""Procedural faces: seeded clips with no real person behind them, and their ground truth.

    identity = Identity.draw(7)
    rendered = render(identity, action_states(Action.SMILE, seed=1), 256)

`state.py` says what a face does, `identity.py` who it is, `renderer.py` draws one in the other.
"""

from typing import TYPE_CHECKING, Any

from dfm_engine.synthetic.identity import RENDERER_VERSION, Identity
from dfm_engine.synthetic.landmarks import LANDMARKS, MIRRORED
from dfm_engine.synthetic.renderer import Rendered, render
from dfm_engine.synthetic.state import (
    STATE_FIELDS,
    States,
    action_states,
    idle_states,
    neutral_states,
)

if TYPE_CHECKING:
    from dfm_engine.synthetic.clips import DemoSet, DemoSetSettings, write_clip, write_demo_set

__all__ = [
    "LANDMARKS",
    "MIRRORED",
    "RENDERER_VERSION",
    "STATE_FIELDS",
    "DemoSet",
    "DemoSetSettings",
    "Identity",
    "Rendered",
    "States",
    "action_states",
    "idle_states",
    "neutral_states",
    "render",
    "write_clip",
    "write_demo_set",
]

_OF_CLIPS = ("DemoSet", "DemoSetSettings", "write_clip", "write_demo_set")


def __getattr__(name: str) -> Any:
    """Import `clips` when it is asked for: writing files needs PyAV, drawing does not."""
    if name in _OF_CLIPS:
        from dfm_engine.synthetic import clips

        return getattr(clips, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
