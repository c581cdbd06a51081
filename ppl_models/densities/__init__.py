"""Densities from counts.

Files:
    bins: their edges by a rule, and the density that is constant in each
    histogram: the model: proportions of rows
"""
