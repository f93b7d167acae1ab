"""What a picture and a sensor window are seen through: fixed networks and spectra."""
