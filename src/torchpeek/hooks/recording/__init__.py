"""record(): what the layers of a network return and are given, and the gradients that flow back through them."""
