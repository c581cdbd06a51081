"""Steps of descent as compiled code, many in one call."""
