"""What a layer does to each token by itself: dense, or a mixture of experts."""
