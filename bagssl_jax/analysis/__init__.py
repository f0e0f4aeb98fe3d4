"""Analyses of what a training learned, and of the theory behind it: numbers and figures."""
