"""What simulations say of posteriors: drawn data, draws for each, ranks of the truth among them."""
