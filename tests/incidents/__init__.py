"""Incidents that are played on a real vLLM and recorded."""
