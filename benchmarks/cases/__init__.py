"""The tables of targets: a module for each, with its title and its cases, which ``targets.py`` measures."""
