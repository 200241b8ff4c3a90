"""Studies of what can be read from activations."""
