"""A run: its spec, what is built from it, the runner, and its folder."""
