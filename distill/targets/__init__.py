"""Targets: what teachers and persons say of every part and copy, computed once, kept on disk."""
