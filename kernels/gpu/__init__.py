"""Triton kernels. These modules need Triton, so `kernels.custom_ops` imports them only where a GPU is used."""
