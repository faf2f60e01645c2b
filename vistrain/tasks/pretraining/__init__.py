"""Networks that learn from images without labels: the task and its predictor."""
