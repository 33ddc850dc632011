"""What a model is, once captured: programs, their meaning, what they see, and their listing."""
