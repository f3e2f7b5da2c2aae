"""Prometheus: what series, rules, alerts and groups are called, and how a service's are selected."""
