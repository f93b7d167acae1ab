"""Recordings, samples on disk: the format, importing others into it, surveying oddities."""
