"""The live demo: a page to draw the upper half of a digit on, and the server that completes it."""
