"""What each value of a program sees of the image, exactly, read off the weights."""
