"""Evaluates a program's weights again, and tells whether the model still does the same."""
