"""A finished run teaches its INT8 self: its student, trained as INT8 will compute it."""
