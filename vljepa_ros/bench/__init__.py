"""`vljepa bench`: what this package costs on this machine, beside what it replaces."""
