"""What a file says its model is: hyperparameters, weights, their shares on a mesh. Arithmetic, imports no jax."""
