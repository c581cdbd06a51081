"""What users will say of items.

Files:
    factorization: a vector for each user and each item, and any likelihood of ratings
    coordinate: coordinate ascent in closed form, for normal noise
    poisson: counts as sums of positive parts, and their coordinate ascent
    ease: items as linear combinations of others; a floor, without a density
    ratings: what is asked of pairs and ratings, and sums over those of a user
"""
