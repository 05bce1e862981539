"""Policy + prompts + seed → responses with their behaviour log-probabilities."""
