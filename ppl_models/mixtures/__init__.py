"""Mixtures of Gaussians: by EM, by conjugate updates, and what their draws say."""
