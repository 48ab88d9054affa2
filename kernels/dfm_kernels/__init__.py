"""GPU kernels, each beside its plain-torch reference; tensors in, tensors out."""
