"""The training loop on accelerate: settings, clock, state, checkpoints, optimisers, what a run writes."""
