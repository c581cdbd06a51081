"""Graphs: blocks of nodes, latent positions, and networks that pass messages along edges.

Their rows are pairs of nodes, each pair once, with whether there is an edge between them: a pair
that is not among the rows is missing, and counts nothing.

Files:
    graph: a graph as it is read, and its pairs
    pairs: what pairs of nodes must be
    blocks: stochastic block models
    labelings: the prior of the labels of all nodes
    collapsed: edges given labels, the densities between blocks integrated out
    ascent: the mean-field posterior of blocks, by coordinate ascent
    densities: what that knows of the densities between blocks in closed form
    starts: where the ascent starts from
"""
