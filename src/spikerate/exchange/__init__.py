"""Trained networks: loading, predicting, exporting, conversion to and from other libraries."""
