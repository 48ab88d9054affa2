"""Detectors: their networks, training, measures, and what is made of their scores."""
