"""The user's module: how it is wrapped and copied, what it takes besides images, and how its changes are noticed."""
