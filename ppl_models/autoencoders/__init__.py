"""Codes of rows, and variational autoencoders, whose codes are latents.

Files:
    autoencoder: a narrow code, and the row again; from noisy rows too
    corruption: the noise that is taken away
    reconstruction: the loss of both, as an objective
    vae: a latent vector, and a network from it to the row
    conditional: rows given their labels
    semi_supervised: a few rows have labels, most have none
    domain: rows of several domains, whose labels are known in one
    hierarchical: two layers of latents
    aggregate: how far the posteriors of all rows together are from the prior
    surgery: what was found of that: numbers, a table, a picture
    overlap: sums over the posteriors of all rows
    gaussians: densities of latents whose moments and coordinates are known
"""
