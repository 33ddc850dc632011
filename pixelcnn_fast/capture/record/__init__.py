"""What PyTorch is made to do: every call of a forward is recorded, and two forwards must agree."""
