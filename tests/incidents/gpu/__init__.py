"""Incidents on a real vLLM with a model of everyday size on one GPU; see README.md."""
