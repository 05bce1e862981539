"""What a policy is worth: rows, not verdicts."""
