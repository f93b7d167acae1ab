"""What waits on disk: inspections until the broker has them, and the parts worth a second look."""
