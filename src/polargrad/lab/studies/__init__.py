"""Studies that are not training runs: theory, the unifying view, the engine's benchmark."""
