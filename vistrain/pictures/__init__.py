"""Pictures for people: annotated images, grids, curves."""
