"""Measuring samplers side by side: what the command and benchmarks/ share."""
