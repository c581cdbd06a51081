"""Each feature given those before it.

Files:
    model: the density of any causal network, and its program
    made: a masked perceptron, over features in their order
    pixelcnn: masked convolutions, over the pixels of an image
    pixelrnn: recurrent layers, over the pixels of an image
    repeated: draws whose steps run as compiled code
    stage: steps that are the same but for their place
    by_feature: those of a masked perceptron, and of any network by passes
    by_pixel: those of a PixelCNN
    by_state: those of a PixelRNN
"""
