"""Trained networks for the world outside: loading, predicting, exporting, other libraries."""
