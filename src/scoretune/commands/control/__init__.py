"""scoretune control: problems with known answers, solved and checked from the command line."""
