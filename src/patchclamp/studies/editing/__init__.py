"""Studies of editing: units, facts and gains taken out of weights or written into them."""
