"""Where frames come from. Each module gives an iterator of `edge.sample.Frame`."""
