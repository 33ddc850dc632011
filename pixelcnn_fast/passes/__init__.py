"""From a program to a phased program, in the order of pipeline.py."""
