"""The batches of steps to come, for blocks of them."""
