"""Rows out of a game of two networks.

Files:
    model: generator and discriminator; as a program, the generator
    latents: normals beside categories, for modes that are apart
    game: the objectives of both players, who take turns
"""
