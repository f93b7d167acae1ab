"""What a run tells while it trains: the news, who listens, and the files that keep them."""
