"""Parts of `heavy_tails.py`: chains of regression, networks, and the page."""
