"""The MLP energy of the Langevin benchmark as a bare torch module."""

import torch
from torch import nn


class Energy(nn.Module):
    def __init__(self, layers):
        super().__init__()
        modules = []
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data = torch.from_numpy(weight)
            linear.bias.data = torch.from_numpy(bias)
            modules += [linear, nn.SiLU()]
        self.network = nn.Sequential(*modules[:-1])

    def forward(self, x):
        return self.network(x).squeeze(-1) + 0.5 * x.square().sum(-1)
