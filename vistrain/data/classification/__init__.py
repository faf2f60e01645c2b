"""Data with classes: folders, lists, the known sets, generated patterns."""
