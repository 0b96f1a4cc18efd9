"""Recovery studies: what each way of training wins back of what shrinking a model lost."""
