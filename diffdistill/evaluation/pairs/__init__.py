"""Measures of one image against its original: pixels, perceptual networks, patches."""
