"""Evaluate a trained backbone: full kNN, linear probe, fine-tuning."""
