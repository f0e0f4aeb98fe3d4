"""Self-supervised learning on fixed-scale image patches, in JAX.

An image is a bag of patches, and its representation is the mean of their embeddings
(Chen, Bardes, Li and LeCun, arXiv 2206.08954).
"""
