"""Predicting embeddings against predicting tokens (paper, section 4.5)."""
