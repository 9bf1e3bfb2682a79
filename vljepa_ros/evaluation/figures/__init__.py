"""What the tables are computed with: intervals, boundaries, CIDEr, targets."""
