"""A simulated line: textured parts, defects, sensor waveforms. The embedded default input."""
