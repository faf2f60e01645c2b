"""Segmentation of volumes: the task, its predictor, its pictures, and measuring files."""
