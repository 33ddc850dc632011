"""Turns a module into a program by recording the calls that it makes on an example."""
