r"""Transformers of images: an image is a sequence of patches, which look at one another.

.. math::
    h_p = E x_p + e_p, \qquad
    h \leftarrow h + \mathrm{attention}(h), \quad h \leftarrow h + \mathrm{mlp}(h), \qquad
    \mathrm{attention}(h) = \mathrm{softmax}(Q K^\top / \sqrt{k}) \, V

One more token, of the class, belongs to no patch, and what it has gathered in the end is the
output. The network is torchvision's; what is here takes flat rows to it, as images of any number
of colours, and pre-trains it without labels.

Shapes: `B` rows, images of `C` colours and `S` by `S` pixels, `D = C * S * S`; `P` patches of
`Q` numbers, `L` layers, `A` heads, `W` the width of a token.

References:
    | An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), https://arxiv.org/abs/2010.11929
    | SimMIM: a Simple Framework for Masked Image Modeling (Xie et al., 2022)
    | https://arxiv.org/abs/2111.09886
"""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ImageInput(nn.Module):
    """A network of images, on flat rows: those of torchvision and of timm are all such.

    Arguments:
        network: A module from `(B, C, H, W)`.
        height, width: The size of an image, `H` and `W`.
        colours: The number of colours, `C`. Those of a row come one after the other.

    Raises:
        ValueError: At a call, if rows have another length.

    Example:
        >>> from ppl_models import Classifier
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())  # or, `timm` being installed,
        >>> # timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, ...)
        >>> model = Classifier(64, 10, num_hidden=4, network=ImageInput(network, 8, 8))
        >>> model.predict(torch.zeros(5, 64)).shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, height: int, width: int, colours: int = 1) -> None:
        super().__init__()
        self.network: Any = network
        self.shape = (colours, height, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.images(x))

    def images(self, x: Tensor) -> Tensor:
        """Returns rows as images, `(B, C, H, W)`."""
        if x.ndim != 2 or x.shape[1] != math.prod(self.shape):
            colours, height, width = self.shape
            raise ValueError(
                f"{type(self).__name__}: expected flat images of {height} x {width} pixels and "
                f"{colours} colour(s), with shape (B, {math.prod(self.shape)}), got "
                f"{tuple(x.shape)}. Try x.flatten(1), or another size."
            )
        return x.unflatten(1, self.shape)


class VisionTransformer(ImageInput):
    r"""A vision transformer from flat square images `(B, D)` to vectors `(B, num_outputs)`.

    It is torchvision's `VisionTransformer`, with a projection of patches that takes the colours
    of the image. With other networks, such as those of `timm`, `ImageInput` does the same.

    Arguments:
        side: The pixels of a side, `S`.
        num_outputs: The length of a vector: two for each latent in `AmortizedNormal`. Default:
            what the token of the class has gathered, `(B, W)`, the features of a `Classifier`.
        patch: The pixels of a side of a patch, which divide `side`.
        width: The length of a token, `W`.
        num_layers: The number of layers, `L`.
        num_heads: The number of heads, `A`, which divide `width`.
        colours: The number of colours, `C`.
        dropout: The probability with which a number is dropped in training.

    Raises:
        ValueError: If the patches do not divide the image, or the heads the width.

    Example:
        >>> from guides import AmortizedNormal
        >>> encoder = VisionTransformer(28, num_outputs=2 * 16, num_layers=1)
        >>> AmortizedNormal(784, 16, encoder).posterior(torch.zeros(5, 784)).mean.shape
        torch.Size([5, 16])
        >>> VisionTransformer(28, num_layers=1)(torch.zeros(5, 784)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        side: int,
        num_outputs: int | None = None,
        patch: int = 7,
        width: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        colours: int = 1,
        dropout: float = 0.0,
    ) -> None:
        _check_divides("patch", patch, "side", side, "the patches of an image")
        _check_divides("num_heads", num_heads, "width", width, "the heads of a token")
        from torchvision.models import vision_transformer  # here, because it is slow to import

        network = vision_transformer.VisionTransformer(
            side, patch, num_layers, num_heads, width, 2 * width, dropout, num_classes=1
        )
        network.conv_proj = _projection(colours, width, patch)
        network.heads = nn.Identity() if num_outputs is None else nn.Linear(width, num_outputs)
        super().__init__(network, side, side, colours)
        self.patch, self.width = patch, width

    def tokens(self, x: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Returns the tokens of all patches after the last layer, the class first: `(B, 1 + P, W)`.

        Arguments:
            x: Rows, `(B, D)`.
            hidden: The patches that it does not see, `(B, P)`; default: none.
            mask: What it sees in their place, `(W,)`.
        """
        return self.network.encoder(self._embedded(x, hidden, mask))

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """Returns which token looks at which, in each layer and head: `(B, L, A, 1 + P, 1 + P)`.

        Lines sum to one. The first token is the class; patches follow, line by line.
        """
        encoder, found = self.network.encoder, []
        h = self._embedded(x) + encoder.pos_embedding  # (B, 1 + P, W)
        for layer in encoder.layers:
            seen = layer.ln_1(h)
            found.append(layer.self_attention(seen, seen, seen, average_attn_weights=False)[1])
            h = layer(h)
        return torch.stack(found, 1)

    def _embedded(
        self, x: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The tokens of the class and of the patches, without their places, `(B, 1 + P, W)`."""
        h = self.network.conv_proj(self.images(x)).flatten(2).transpose(1, 2)  # (B, P, W)
        if hidden is not None:
            h = torch.where(hidden.unsqueeze(-1), h.new_zeros(()) if mask is None else mask, h)
        return torch.cat([self.network.class_token.expand(len(x), -1, -1), h], 1)


class MaskedPatches(nn.Module):
    r"""A vision transformer that is asked for the patches it does not see, without labels.

    .. math::
        \mathbb{E}_{M} \sum_{p \in M} \lVert x_p - f_p(x_{\setminus M}) \rVert^2

    over sets of patches :math:`M` drawn anew each time. The answers are read off the token of the
    class alone, so that it learns to gather what a classifier will ask it for; read off the tokens
    of the patches, they leave it as it was. It is trained by `fit(reconstruction(masked), x)`, and
    its `transformer` is then the start of a classifier or of an encoder:
    `warm_start(network, from_=masked.transformer)`.

    What it descends is a squared error in the units of the data, squared. Its kind of evidence is
    none: means of hidden patches are no density, and no conditional ones either, of which a
    pseudo-likelihood could be made.

    Arguments:
        transformer: The network to be trained.
        share: The share of patches that are hidden, at least one of them, and not all.

    Raises:
        ValueError: If so many cannot be hidden.

    Example:
        >>> from ppl_models import fit, reconstruction
        >>> masked = MaskedPatches(VisionTransformer(8, patch=4, width=16, num_layers=1))
        >>> x = torch.ones(20, 64)
        >>> run = fit(reconstruction(masked), x, epochs=60, lr=1e-2, seed=0)
        >>> run.history["loss"][-1] < 1 < run.history["loss"][0]  # of two patches of 16 pixels
        True
    """

    def __init__(self, transformer: VisionTransformer, share: float = 0.5) -> None:
        super().__init__()
        colours, side, _ = transformer.shape
        number = (side // transformer.patch) ** 2
        if not 0 < share < 1 or not 0 < round(share * number) < number:
            raise ValueError(
                f"share: expected a part of {number} patches, at least one and not all, got "
                f"{share!r}. Try 0.5, or smaller patches."
            )
        self.num_patches, self.num_hidden = number, round(share * number)
        self.transformer = transformer
        self.mask = nn.Parameter(0.02 * torch.randn(transformer.width))  # seen in their place
        self.head = nn.Linear(transformer.width, number * colours * transformer.patch**2)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Returns all patches, `(B, P, Q)`, without a look at those hidden, `(B, P)`, or drawn."""
        hidden = self.hide(x) if hidden is None else hidden
        gathered = self.transformer.tokens(x, hidden, self.mask)[:, 0]  # (B, W)
        return self.head(gathered).unflatten(1, (self.num_patches, -1))

    def hide(self, x: Tensor) -> Tensor:
        """Draws which patches of rows are hidden, the same number of each, `(B, P)`."""
        ranks = torch.rand(len(x), self.num_patches, device=x.device).argsort(1)
        return ranks < self.num_hidden

    def patches(self, x: Tensor) -> Tensor:
        """Returns the patches of rows, `(B, P, Q)`."""
        patch, images = self.transformer.patch, self.transformer.images(x)
        return F.unfold(images, patch, stride=patch).transpose(1, 2)

    def filled(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Returns the rows, `(B, D)`, with its answers in the place of hidden patches."""
        whole = torch.where(hidden.unsqueeze(-1), self(x, hidden), self.patches(x))
        size, patch = self.transformer.shape[1:], self.transformer.patch
        return F.fold(whole.transpose(1, 2), size, patch, stride=patch).flatten(1)

    def reconstruction_loss(self, x: Tensor) -> Tensor:
        """Returns the squared error of the hidden patches of each row, `(B,)`."""
        hidden = self.hide(x)
        errors = (self.patches(x) - self(x, hidden)).square().sum(-1)  # (B, P)
        return torch.where(hidden, errors, 0.0).sum(1)

    def evidence(self) -> NoReturn:
        """There is none.

        Raises:
            ValueError: Says why.
        """
        raise ValueError(
            "MaskedPatches: it has no density of rows, and so no evidence: it gives a mean of "
            "hidden patches, under squared errors, and is there to be the start of another "
            "network. Try warm_start(classifier.network, from_=masked.transformer)."
        )


def _projection(colours: int, width: int, patch: int) -> nn.Conv2d:
    """From a patch to its token, with the weights that torchvision's own for three colours has."""
    found = nn.Conv2d(colours, width, patch, stride=patch)
    nn.init.trunc_normal_(found.weight, std=math.sqrt(1 / (colours * patch**2)))
    nn.init.zeros_(found.bias)  # type: ignore[arg-type]
    return found


def _check_divides(name: str, part: int, whole_name: str, whole: int, what: str) -> None:
    if part < 1 or whole < 1 or whole % part:
        fitting = [n for n in range(1, whole + 1) if whole % n == 0]
        raise ValueError(
            f"{name}: expected a whole part of {whole_name}={whole}, as {what} are all of one "
            f"size, got {part}. Try {', '.join(map(str, fitting)) or 'a positive number'}."
        )
