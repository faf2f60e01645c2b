"""Parity with the authors' own code, by stored fixtures."""
