"""Rewards: what a response is worth. `protocol.py` says what a reward is; the other files are rewards."""
