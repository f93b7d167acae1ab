"""Recording to checkpoint: a frozen teacher is distilled into a student (host only, torch)."""
