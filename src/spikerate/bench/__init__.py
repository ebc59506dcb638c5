"""What a training step costs, by method and T, side by side."""
