"""Studies: cells of pretraining, shrinking and scoring, run once each, and the report on them."""
