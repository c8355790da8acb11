"""Model architectures: one file each, equations only; `registry` names them."""
