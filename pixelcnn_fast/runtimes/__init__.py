"""What draws images: each executes a phased program, or the model itself."""
