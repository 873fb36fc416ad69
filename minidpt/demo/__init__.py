"""Drawn pictures of everyday things: a data set that needs no download."""
