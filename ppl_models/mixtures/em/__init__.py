"""EM of mixtures of Gaussians.

Files:
    start: where it begins
    candidates: the best of some starts, after a few steps of each
    expectation: one half of a step: sums over responsibilities
    maximisation: the other half: parameters for these sums, above a floor
    climb: steps that follow each other, without parameters in between, and leaps
    floor: what must be said of components that have collapsed
"""
