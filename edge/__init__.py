"""The contract: what host, device and plant must agree on, and the `edge` command."""
