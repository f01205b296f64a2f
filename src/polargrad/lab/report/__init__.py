"""Pages and figures, drawn from records alone."""
