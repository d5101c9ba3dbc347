"""What a sweep over steps, guidance and seeds is made of: its ground truth, its cells, its table."""
