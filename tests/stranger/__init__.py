"""A package of somebody else's, outside of the library: a part of each kind."""
