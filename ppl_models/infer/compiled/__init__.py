"""Programs as graphs of tensor operations, without Pyro's handlers."""
