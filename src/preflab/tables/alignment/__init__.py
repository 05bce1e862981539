"""A model of rows, trained further on what discriminators say of its rows."""
