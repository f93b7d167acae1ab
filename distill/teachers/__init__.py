"""Frozen teachers: what they see in a part, and what they say of it."""
