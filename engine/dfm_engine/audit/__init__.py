"""Leak audits: what a detector could learn of a data set without looking at a face.

Fakes and real clips should differ in the forgery alone. `baselines.audit_rows` trains tiny
classifiers on what they must not differ in (sizes and statistics of the codec, facts of the
container, the coarse first picture, the outermost pixels), tests them on people that they were not
trained on, and flags those that do better than chance. `command.run_audit` is `dataset audit`.
"""
