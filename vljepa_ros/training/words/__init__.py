"""The Y-encoder learns more words, from a dictionary and many wordings of captions."""
