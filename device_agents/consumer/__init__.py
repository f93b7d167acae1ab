"""The plant's side: who listens, and what it knows of each station."""
