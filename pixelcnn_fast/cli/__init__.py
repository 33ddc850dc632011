"""The subcommands of ``python -m pixelcnn_fast``."""
