"""CLIP itself: network, attention, packed prompts, tokenizer, and the sizes of a state dict."""
