"""Matrix experiments: the problems of the paper under its configurations, their runs, figures and page."""
