"""Which function plans the conversion of which checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from phlite.checkpoint import Checkpoint
from phlite.convert.phi2 import plan_phi2
from phlite.convert.phi3 import plan_phi3
from phlite.convert.phi3small import plan_phi3small
from phlite.convert.phimoe import plan_phimoe
from phlite.convert.plan import Conversion
from phlite.errors import UnsupportedModelError
from phlite.gguf import quoted

__all__ = ["PLANS", "plan_conversion"]

PLANS: Final[dict[str, Callable[[Checkpoint], Conversion]]] = {
    "phi": plan_phi2,
    "phi3": plan_phi3,
    "phi3small": plan_phi3small,
    "phimoe": plan_phimoe,
}
"""model_type of config.json -> plan of the conversion."""


def plan_conversion(checkpoint: Checkpoint) -> Conversion:
    """Return what the GGUF file of a checkpoint will hold.

    raises: ModelFileError where the checkpoint is incomplete or contradicts itself;
            UnsupportedModelError for an architecture, a key or a tensor that is not implemented
    """
    model_type = checkpoint.model_type
    if model_type not in PLANS:
        raise UnsupportedModelError(
            f"{checkpoint.config_source}: model_type {quoted(model_type)} cannot be converted; expected one of "
            f"{', '.join(PLANS)}"
        )
    return PLANS[model_type](checkpoint)
