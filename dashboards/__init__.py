"""Boards that draw the objectives, the engines and what a runbook says to look at."""
