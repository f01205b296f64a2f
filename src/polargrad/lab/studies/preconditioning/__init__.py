"""The unifying view, measured: what each optimizer does to the curvature, to the gradient and to the objective."""
