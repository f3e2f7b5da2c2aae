"""Scaling policies on the load that the sidecars publish, and what they would have done."""
