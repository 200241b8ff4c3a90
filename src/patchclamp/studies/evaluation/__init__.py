"""Studies of how dictionaries, models and data are judged."""
