"""edit(): what a layer is given, what it returns, or the gradient that flows back through it, replaced."""
