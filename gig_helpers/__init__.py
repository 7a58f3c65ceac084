"""Generalized Integrated Gradients for concepts in image models, one file a step of the method."""
