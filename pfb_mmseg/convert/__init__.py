"""Turning PFB on in a config that knows nothing of it, and off again."""
