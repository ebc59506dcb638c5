"""How good a gradient is: finite differences, the search for a temperature, the agreement of rules."""
