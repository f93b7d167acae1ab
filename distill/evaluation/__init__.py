"""How good a student is: metrics, thresholds, and the sheet to look at."""
