"""What a captured model is: programs, their meaning, what they see, and their listing."""
