"""Default amounts of text that studies and runs read."""

CORPUS_CHARACTERS = 9_000_000  # of each domain
TASK_LIMIT = 2000  # examples of a task to train on
VALIDATION_LIMIT = 2000  # examples of a task to score
HELDOUT_TOKENS = 16_384  # of each domain, and as many to observe
SCORE_ROWS = 32  # in a batch that is scored
