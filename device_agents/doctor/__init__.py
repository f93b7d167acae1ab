"""The doctor: each part of a station looked at once, with the next step for what fails."""
