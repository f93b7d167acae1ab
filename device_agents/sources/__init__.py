"""Where parts come from: one kind of source for each entry of the station file."""
