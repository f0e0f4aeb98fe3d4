"""Probes of a frozen encoder: bags of patch embeddings, linear classifiers and kNN."""
