"""Pages and figures, drawn from records alone: one page template, one kind of line figure."""
