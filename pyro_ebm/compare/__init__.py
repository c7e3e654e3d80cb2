"""Models side by side: :func:`compare`, and ``python -m pyro_ebm.compare`` on the shell."""

from .composing import composition, draw_product
from .data import Dataset, load
from .models import make
from .side_by_side import compare

__all__ = ["Dataset", "compare", "composition", "draw_product", "load", "make"]
