"""Turns a program into a phased program, and into a runtime's own, in the order of pipeline.py."""
