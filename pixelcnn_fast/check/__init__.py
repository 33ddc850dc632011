"""Compares a program with its model, and tests the causality of models that have no program."""
