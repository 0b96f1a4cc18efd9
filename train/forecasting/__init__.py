"""Memory, time and traffic of a run, computed before it starts."""
