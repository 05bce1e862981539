"""Studies: make what arms share once, run each arm in its folder, resume after a kill."""
