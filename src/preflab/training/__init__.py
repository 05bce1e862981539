"""Training: one file a method, reading like the paper's algorithm box, on two loops: `offline.py` (a fixed data set)
and `online.py` (responses sampled from the policy)."""
