"""Adaptation: a run taken to another line by few of its weights."""
