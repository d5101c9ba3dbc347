"""Feature extractors, their weight files, and sets and statistics of features."""
