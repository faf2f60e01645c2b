"""Safe loading of weights and declarative key maps."""
