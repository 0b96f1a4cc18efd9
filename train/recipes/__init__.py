"""Whole runs: pretraining, fine-tuning, distillation, dropping while training."""
