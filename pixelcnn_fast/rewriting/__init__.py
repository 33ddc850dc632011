"""Rewrites the graphs that PyTorch captures of a model so that they call this library's ops."""
