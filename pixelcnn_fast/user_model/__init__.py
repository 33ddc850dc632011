"""The user's module: how it is wrapped and copied, and what it takes besides images."""
