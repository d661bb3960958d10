"""Records, images and conversations on their way to tensors."""
