"""Records every call that a forward makes, and checks that two forwards agree."""
