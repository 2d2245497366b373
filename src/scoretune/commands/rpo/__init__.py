"""scoretune rpo: from a model's pictures to better ones, by critique and edit."""
