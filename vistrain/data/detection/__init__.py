"""Data with boxes: COCO's format, its augmentation, generated shapes."""
