"""How the output of any layer becomes (N, C, *grid), and which layer to explain by default."""
