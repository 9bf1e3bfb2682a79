"""A site's own words: a small predictor over the tokens of an image encoder that stays as it is."""
