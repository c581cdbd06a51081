"""Graphs: blocks of nodes, latent positions, and networks that pass messages along edges.

Their rows are pairs of nodes, each pair once, with whether there is an edge between them: a pair
that is not among the rows is missing, and counts nothing.

Files:
    graph: a graph as it is read, and its pairs
    pairs: what pairs of nodes must be
    blocks: stochastic block models
    collapsed: labels and edges, probabilities and densities integrated out
    ascent: the mean-field posterior of blocks, by coordinate ascent
    densities: what that knows of the densities between blocks in closed form
    starts: where the ascent starts from
    positions: latent positions, near one another where there are edges
    vae: a variational autoencoder of edges
    classifier: labels of nodes, by a graph network
    batches: minibatches with all edges, and some of the other pairs
    links: edges that are held out, to be predicted
"""
