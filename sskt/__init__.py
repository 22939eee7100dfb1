"""What is learned: networks, views, losses and methods in plain PyTorch."""
