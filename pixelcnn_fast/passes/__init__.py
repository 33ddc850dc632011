"""Turn a program into a phased program, in the order of pipeline.py."""
