"""What is learned from and asked for: prompts, pictures, points, series."""
