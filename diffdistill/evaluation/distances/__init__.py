"""Distances between two sets of images, as pure functions and as states that are fed batch by batch."""
