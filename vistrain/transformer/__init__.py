"""The DETR family's toolbox: deformable layers, query selection, denoising. Pure torch."""
