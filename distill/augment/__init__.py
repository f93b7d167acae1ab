"""Copies of a training part: mild changes that keep its label, made defects that break it."""
