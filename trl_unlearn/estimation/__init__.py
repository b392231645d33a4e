"""Memory and time of a run before it, from shapes alone."""
