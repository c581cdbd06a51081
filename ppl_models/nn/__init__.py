"""Networks: torch only, no Pyro."""

from ppl_models.nn.conv import ConvDecoder, ConvEncoder
from ppl_models.nn.dcgan import ConvDiscriminator, ConvGenerator
from ppl_models.nn.graph import GraphNetwork, drop_features
from ppl_models.nn.made import MaskedLinear, MaskedMLP
from ppl_models.nn.missing import MissingInput
from ppl_models.nn.mlp import MLP
from ppl_models.nn.pixelcnn import GatedPixelCNN
from ppl_models.nn.pixelrnn import DiagonalBiLSTM, RecurrentPixels, RowLSTM
from ppl_models.nn.residual import ResidualMLP
from ppl_models.nn.time_mlp import Condition, TimeEmbedding, TimeMLP
from ppl_models.nn.unet import ResNet, UNet
from ppl_models.nn.vit import ImageInput, MaskedPatches, VisionTransformer

__all__ = [
    "MLP",
    "Condition",
    "ConvDecoder",
    "ConvDiscriminator",
    "ConvEncoder",
    "ConvGenerator",
    "DiagonalBiLSTM",
    "GatedPixelCNN",
    "GraphNetwork",
    "ImageInput",
    "MaskedLinear",
    "MaskedMLP",
    "MaskedPatches",
    "MissingInput",
    "RecurrentPixels",
    "ResNet",
    "ResidualMLP",
    "RowLSTM",
    "TimeEmbedding",
    "TimeMLP",
    "UNet",
    "VisionTransformer",
    "drop_features",
]


def __dir__() -> list[str]:
    return __all__
