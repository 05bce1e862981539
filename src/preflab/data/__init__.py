"""Data: records, the files they come from, splits by prompt, and their way into token ids."""
