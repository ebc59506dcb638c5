"""Measurements of a network: predictions, firing rates, operations and energy, values that are not finite."""
