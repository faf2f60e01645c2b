"""LightningModules, one per task; they never name a paper."""
