"""The inspector: from a shot to a durable record, in threads of one process."""
