"""A package, as another of this name among those that are installed would come before it."""
