"""What `compression.py` is made of."""
