"""Which outputs of a network depend on which inputs."""

import torch


def shaken(model):
    """The model in float64, far from its first parameters: biases are no longer zero."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return model


def dependence(network, num_features, trials=20):
    """Which outputs depend on which inputs, (D, D), by gradient at some random rows."""
    x = torch.randn(trials, num_features, dtype=torch.float64, requires_grad=True)
    outputs = network(x)  # (T, D, P)
    mixed = (outputs * torch.randn_like(outputs)).sum((0, 2))  # (D,)
    (gradients,) = torch.autograd.grad(
        mixed, x, torch.eye(num_features).double(), is_grads_batched=True
    )  # (D, T, D)
    return (gradients != 0).any(1)
