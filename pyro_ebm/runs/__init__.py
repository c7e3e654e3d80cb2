"""What a run leaves behind, and what lets it go on: draws, checkpoints, and a hold on its folder.

Chains (:class:`~pyro_ebm.MCMC`) and training (:class:`~pyro_ebm.objectives.Resumable`) share it.
"""

from .draws import Draws

__all__ = ["Draws"]
