"""Forgery detectors: models, training, evaluation, scoring, class activation maps."""
