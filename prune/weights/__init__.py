"""Zeros inside experts: criteria for single weights of the experts' matrices, as plans of masks."""
