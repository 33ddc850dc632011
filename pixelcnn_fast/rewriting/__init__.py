"""Rewrites the graphs that PyTorch captures of a model, before autograd, so that they call this library's ops."""
