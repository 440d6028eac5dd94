"""Measuring Blobark side by side with other tools; `run.py` is the command."""
