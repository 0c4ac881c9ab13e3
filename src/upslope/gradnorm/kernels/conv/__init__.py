"""Kernels of convolutions. Each file imports only those above it:

- `gradients`: the operands of a convolution's weight gradient, and ways to form it for each sample;
- `cost_model`: an estimate of what each method costs, from shapes alone;
- `methods`: ways to compute the norm of each sample's weight gradient, and a `PerSampleGradient`
  that takes the cheapest of them;
- `arrangement`: in which order of memory a convolution is run, and whether as a matrix product;
- `convolution`: the kernel itself, and the rules of torch's convolutions;
- `fused`: the kernel of a convolution with the batch normalisation of its output.
"""
