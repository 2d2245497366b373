"""scoretune pretrain: the shipped miniatures, trained again from nothing."""
