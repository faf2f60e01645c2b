"""Datamodules, datasets, transforms, collation, generated demo data."""
