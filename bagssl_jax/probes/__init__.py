"""Probes of frozen features, as pure functions: arrays in, numbers out."""
