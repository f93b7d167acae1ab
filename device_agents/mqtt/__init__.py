"""One MQTT 5 connection: the link, its TLS, who we are, and what a refusal means."""
