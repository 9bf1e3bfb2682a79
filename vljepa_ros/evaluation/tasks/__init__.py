"""One file a table of the evaluation."""
