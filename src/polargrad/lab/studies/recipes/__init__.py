"""Studies by the names under which the command line knows them."""
