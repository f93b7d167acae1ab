"""The student: what it is made of, and where it may start from."""
