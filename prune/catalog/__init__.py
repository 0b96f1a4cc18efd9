"""What there is to shrink with, as tables and pages."""
