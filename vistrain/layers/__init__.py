"""The ground: boxes, position encodings, deformable sampling, padding, normalisation layers. Pure torch."""
