"""Preferences: the answer alone is chosen, the same answer in many words is rejected."""
