"""kvstream: which KV-cache policy, which budget, and what it costs, measured exactly."""
