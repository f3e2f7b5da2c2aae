"""Failure modes as data, the features they are judged by, and the diagnosis that ranks them."""
