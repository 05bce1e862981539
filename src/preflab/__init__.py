"""preflab: train language models on preferences, and see what each method bought and what it cost."""

__version__ = "0.1.0"
