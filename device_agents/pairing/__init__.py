"""Which sensor readings belong to a frame, and whether they can be believed: pure rules."""
