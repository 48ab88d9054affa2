"""Forgery detectors: models, training, evaluation, scoring, class activation maps.

`models.py` makes a detector by name, `load.py` reads a trained one; `runner.py` says how frames
meet one, through `fit.py`, the step that all runners share. `train.py` is the training (read it
first), from a frame store to a RUN folder (`run_folder.py`).
"""
