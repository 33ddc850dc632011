"""Turns recorded calls into the instructions of a program."""
