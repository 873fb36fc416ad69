"""What is read from disk and written to it: checkpoints, published prompts, saved models."""
