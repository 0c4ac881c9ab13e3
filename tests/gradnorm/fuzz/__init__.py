"""Random networks that the engine is held against, each from one integer."""
