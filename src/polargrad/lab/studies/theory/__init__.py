"""The theorems, run: strongly convex quadratics with known constants, and what each optimizer does on them."""
