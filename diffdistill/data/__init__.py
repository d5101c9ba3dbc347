"""Image sets and prompt lists."""
