"""Uses of weights: the tape notes them, and their gradients are reduced as they come."""
