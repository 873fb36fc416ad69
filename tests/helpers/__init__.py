"""What the tests share: naive references, tiny models, drawn data sets, runs of commands."""
