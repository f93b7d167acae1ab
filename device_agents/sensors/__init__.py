"""Where sensor windows come from. Each module gives `edge.sample.Window`s."""
