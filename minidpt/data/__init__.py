"""Images with class names: what lies in a folder, the few-shot draw, batches."""
