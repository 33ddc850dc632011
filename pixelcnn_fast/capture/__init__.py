"""From a module to a program: its calls on an example are recorded."""
