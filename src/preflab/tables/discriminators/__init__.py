"""Classifiers that tell rows of the table from rows of the model, at four levels."""
