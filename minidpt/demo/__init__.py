"""Drawn images of everyday things: a data set that needs no download."""
