"""A load whose own counts are the truth that others are compared with, and the scenarios that it plays."""
