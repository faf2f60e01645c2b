"""COCO's annotations, for all sets that have them: the one reader, and masks that stay run lengths."""
