"""The three measurements of `gpu.py`, a file each."""
