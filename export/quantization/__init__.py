"""INT8 and INT4: ranges from real samples, scales in the graph, and what they do to scores."""
