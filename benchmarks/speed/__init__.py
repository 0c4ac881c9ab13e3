"""What `gradnorm.py` runs: networks, methods, measurement, display. One idea a file."""
