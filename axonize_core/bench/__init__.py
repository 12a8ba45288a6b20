"""``axonize bench``: what Axonize costs, measured on the user's own machine."""
