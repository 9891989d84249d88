"""One look, and every chart in it. `figures.py` lists them all, and says how to add one."""
