"""Show runs in MLflow, TensorBoard and Weights & Biases. Reads the files of runs only."""
