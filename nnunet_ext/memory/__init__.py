"""How much memory a training step and a prediction need, found out without running them."""
