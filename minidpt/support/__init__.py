"""Files, progress and processes that share a run: the ground floor, which all the others use."""
