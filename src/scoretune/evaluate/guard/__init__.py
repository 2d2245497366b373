"""What watches over a run for a reward that is gamed."""
