"""Tables: rows ⇄ tokens, a language model that writes rows, and what its rows are worth."""
