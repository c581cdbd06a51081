"""Words, sentences and items as vectors.

Files:
    vocabulary: words and their numbers
    networks: from word vectors to features
    sentences: word vectors learned with the labels of sentences
    masked: each word given all others, by a pseudo-likelihood
    any_order: words in an order that is drawn, by a bound
    neighbours: networks from the words near by to the word
    distances: a map of items, of which distances are known
    noncentral: the density of a distance between Gaussian points
    tables: a table of distances as pairs
    classical: positions where distances are Euclidean, in closed form
    clusters: a VAE with a cluster above its latent vector
    procrustes: draws of a map that are turned alike
"""
