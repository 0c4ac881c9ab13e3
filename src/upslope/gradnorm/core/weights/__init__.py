"""Weights: parameters, and what is made of parameters, to which gradients are pulled back."""
