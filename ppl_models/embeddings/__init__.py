"""Words, sentences and items as vectors.

Files:
    distances: a map of items, of which distances are known
    noncentral: the density of a distance between Gaussian points
    tables: a table of distances as pairs
    classical: positions where distances are Euclidean, in closed form
    procrustes: draws of a map that are turned alike
"""
