"""Rewrites the graphs that PyTorch captures of a model to call this library's ops."""
