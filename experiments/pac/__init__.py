"""What `pac_bayes.py` is made of."""
