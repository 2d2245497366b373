"""scoretune doctor: laws with known answers, measured on the user's machine."""
