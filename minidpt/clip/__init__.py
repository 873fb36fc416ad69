"""CLIP itself: network, tokenizer, packed prompts, and the test view of a picture."""
