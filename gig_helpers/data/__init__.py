"""What a run starts from: sizes, weights, pictures, what is on disk, the paper's own numbers."""
