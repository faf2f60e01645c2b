"""Volumes in NIfTI files, with a class for each voxel."""
