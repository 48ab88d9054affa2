"""Keep or reject an animation, with the reason: face, action, agreement of motion.

`measure` turns frames into curves (`Signals`), `check_action` judges them by the gate of one
action, `agreement` compares a driving clip with an animation, `screen_animation` does all three.
"""

from __future__ import annotations

from dfm_engine.screen.agreement import CHANNELS, Agreement, agreement
from dfm_engine.screen.confusion import Confusion, confusion_matrix, parse_overlaps
from dfm_engine.screen.external import ExternalVerdict, ExternalVerdicts, import_verdicts
from dfm_engine.screen.gates import THRESHOLDS, ActionVerdict, check_action, thresholds_for
from dfm_engine.screen.look import Detector, look
from dfm_engine.screen.signals import Signals, extract_signals, measure
from dfm_engine.screen.verdicts import Verdict, judge, screen_animation

__all__ = [
    "CHANNELS",
    "THRESHOLDS",
    "ActionVerdict",
    "Agreement",
    "Confusion",
    "Detector",
    "ExternalVerdict",
    "ExternalVerdicts",
    "Signals",
    "Verdict",
    "agreement",
    "check_action",
    "confusion_matrix",
    "extract_signals",
    "import_verdicts",
    "judge",
    "look",
    "measure",
    "parse_overlaps",
    "screen_animation",
    "thresholds_for",
]
