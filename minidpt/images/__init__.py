"""From an image file to the pixels that CLIP takes."""
