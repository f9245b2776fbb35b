"""What the bytes mean: the table of ggml's block formats, and the values in each family's blocks."""
