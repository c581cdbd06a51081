"""Training by several processes that share each batch."""
