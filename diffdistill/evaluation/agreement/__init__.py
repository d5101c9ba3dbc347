"""Agreement of an image with its caption: towers, heads and scores."""
