"""Fakes of an engine that keeps a tap page; the real one is in tests/e2e/test_real_tap.py."""
