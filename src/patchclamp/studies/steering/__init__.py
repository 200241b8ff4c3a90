"""Studies of steering: directions that are added, ablated and taken out of weights."""
