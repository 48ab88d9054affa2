"""A clip's face: detection, pose, box, crop, and the source frame."""
