"""vistrain trains, evaluates and reproduces dense-vision models. Importing it is light: no torch."""

__version__ = "0.1.0"
