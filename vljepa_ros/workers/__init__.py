"""Work that several workers share: processes of this machine, or actors of a Ray cluster."""
