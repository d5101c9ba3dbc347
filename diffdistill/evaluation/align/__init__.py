"""align_score: towers that need no download, and the heads that join them."""
