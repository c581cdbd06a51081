"""Each feature given those before it.

Files:
    model: the density of any causal network, and its program
    made: a masked perceptron, over features in their order
    pixelcnn: masked convolutions, over the pixels of an image
    pixelrnn: recurrent layers, over the pixels of an image
"""
