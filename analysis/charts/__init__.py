"""One look, and every chart in it; `figures.py` lists them all."""
