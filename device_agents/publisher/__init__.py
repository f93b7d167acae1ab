"""The publisher: from the outbox to the broker, and the station's own voice."""
