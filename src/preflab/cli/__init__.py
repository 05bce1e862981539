"""Commands: `main.py` holds the table, each other file a command or the flags."""
