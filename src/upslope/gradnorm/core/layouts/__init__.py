"""Places of the samples in a tensor: how they are described, probed and checked."""
