"""Image sets, prompt lists and embedding caches."""
