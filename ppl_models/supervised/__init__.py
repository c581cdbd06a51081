"""From rows to labels and targets.

Files:
    regression: linear, of targets, with closed forms
    logistic: logistic and softmax, of labels
    predictor: what these share: the linear predictor and its priors
    discriminant: a Gaussian for the rows of each class
    classifier: a neural network, of labels
"""
