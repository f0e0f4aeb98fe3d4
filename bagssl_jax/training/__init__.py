"""Pretraining: the state, the jitted step, optimisers, and the loop that drives them."""
