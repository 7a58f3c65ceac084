"""What a run starts from: sizes, weights, pictures, the artifacts of others, the paper's tables."""
