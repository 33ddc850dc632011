"""The subcommands of ``python -m pixelcnn_fast``, and the measuring that they share with benchmarks/."""
