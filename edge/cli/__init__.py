"""The `edge` command: one thin module per group of commands."""
