"""Charts, words and tables → one page."""
