"""The quality of gradients: finite differences, the search for a temperature, the agreement of training rules."""
