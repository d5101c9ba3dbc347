"""Models measured against each other: generated images, a ruler, and sweeps over steps and guidance."""
