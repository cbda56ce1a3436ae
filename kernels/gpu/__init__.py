"""Triton kernels. Import of this package's modules needs triton; `kernels.ops` does so only where a GPU is used."""
