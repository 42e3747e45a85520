"""What can be asked for: families of models, and what the files of a model may hold. Without torch."""
