"""Readers of folders and tables: which files there are, who is seen in them, in what order."""
