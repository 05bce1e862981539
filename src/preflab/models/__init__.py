"""Models: load and save, the small base, reward heads, freezing, scoring."""
