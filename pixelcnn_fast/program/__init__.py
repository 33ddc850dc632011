"""What a model is: a causal program of instructions and steps."""
