"""Distil diffusion models into one-step and any-step generators."""

__version__ = "0.1.0"
