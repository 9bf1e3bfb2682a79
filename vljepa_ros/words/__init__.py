"""An embedding, or the pictures of a change, into words."""
