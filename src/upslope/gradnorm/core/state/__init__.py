"""The state of a model and of a loss between passes: copied, watched, and put back."""
