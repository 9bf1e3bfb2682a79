"""The Y-encoder learns more words, from a dictionary and a stronger sentence encoder."""
