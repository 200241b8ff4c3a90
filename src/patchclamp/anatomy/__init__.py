"""Where the sites of a model are: discovered from one traced call, whatever the architecture is called."""
