"""What `separation_law.py` and `progressive_collapse.py` are made of."""
