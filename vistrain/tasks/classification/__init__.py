"""Classes of pictures: the task and its predictor."""
