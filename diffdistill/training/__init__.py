"""The loop on accelerate: settings, state, checkpoints, averaging, logs, validation pictures."""
