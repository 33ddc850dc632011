"""Evaluates a program's weights again from a model's present ones, and tells whether the model still does the same."""
