"""What ``make gpu-check`` runs: each stage is a process of its own, ``python -m gpu.<module>`` or a tool."""
