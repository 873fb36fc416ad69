"""What every room stands on: files, progress, processes that share a run."""
